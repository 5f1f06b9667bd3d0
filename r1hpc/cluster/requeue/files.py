"""JSON files of the run directory on the batch host. (r1hpc.publish needs a newer Python than it may have.)"""

import json
import os
from typing import Any, Dict


def read(path: str) -> Dict[str, Any]:
    """A JSON object, {} when the file is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            value: Dict[str, Any] = json.load(stream)
            return value
    except FileNotFoundError:
        return {}


def publish(path: str, value: Dict[str, Any]) -> None:
    """Write beside, fsync, rename, fsync the directory: a host that loses power later still has it."""
    temporary = "{}.{}.tmp".format(path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
