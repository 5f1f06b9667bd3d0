"""Packages of which every name can be imported and none can be used: what SGLang imports but never runs on a CPU."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Collection, Sequence
from typing import Any


class Absent(type):
    """The type of a stand-in for a class, function or constant: it may be named, inherited from and looked into."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks for must stay unknown
            raise AttributeError(name)
        return absent(f"{cls.__qualname__}.{name}")

    def __call__(cls, *positional: Any, **named: Any) -> Any:
        raise NotImplementedError(f"{cls.__qualname__} is not installed here: SGLang on CPU was to do without it")


def absent(name: str) -> Absent:
    """The stand-in called `name`."""
    return Absent(name, (), {"__qualname__": name})


class AbsentModule(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(f"{self.__name__}.{name}")


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of a package, but those that the importer is meant to miss."""

    def __init__(self, package: str, missing: Collection[str]) -> None:
        self._prefix = f"{package}."
        self._missing = {f"{package}.{name}" for name in missing}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(self._prefix) or fullname in self._missing:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def stand_in(package: str, missing: Collection[str] = ()) -> None:
    """Turn the module `package`, which is being imported, into a stand-in; what it defines itself is real."""
    sys.modules[package].__class__ = AbsentModule
    sys.meta_path.append(_Submodules(package, missing))
