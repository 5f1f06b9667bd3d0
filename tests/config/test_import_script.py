"""Launch scripts of bash flag arrays become configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.config.import_script import import_script
from r1hpc.config.schema import Config
from r1hpc.config.source import Origin
from r1hpc.config.yaml_core import parse_yaml
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

ARRAYS = Path(__file__).parent / "data" / "deepseek-r1-arrays.sh"
CONFIGS = Path(__file__).parents[2] / "configs"

ONLY_IN_R1_YAML = {
    "ckpt.hf_config",
    "ckpt.bf16_checkpoint",
    # The recipe prints "..." for these.
    "optimizer.optimizer",
    "optimizer.lr",
    "optimizer.lr_decay_style",
    "optimizer.weight_decay",
    "optimizer.adam_beta1",
    "optimizer.adam_beta2",
}

SCRIPT = """\
#!/bin/bash
# A launch script with everything that such scripts do around their arrays.
set -ex
COUNT=$(nvidia-smi topo -m 2>/dev/null | grep -o 'NV[0-9]*' | wc -l)
SCRIPT_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" &>/dev/null && pwd)"
source "${SCRIPT_DIR}/models/deepseek-v3.sh"
export BASE_DIR=${BASE_DIR:-/data/r1}
DATA=$BASE_DIR/data
for ((i=0; i<61; i++)); do layers+=(1); done
MODEL_ARGS=(
   --swiglu --num-layers 61
   --moe-layer-freq $(layers)
   --moe-router-dtype fp32
   --moe-token-dispatcher-type alltoall
)
CKPT_ARGS=(
   --hf-checkpoint ${BASE_DIR}/DeepSeek-R1/   # the comment: --not-a-flag
   #--hf-checkpoint ${BASE_DIR}/other
   --save "$BASE_DIR/with space"
   --save-interval=20
)
NEVER_ARGS=( --lr 3 )
EVAL_ARGS=(
   --eval-interval 20
   --eval-prompt-data aime ${DATA}/aime.jsonl math '/m/${literal}.jsonl'
)
MISC_ARGS=( --moe-token-dispatcher-type flex --moe-enable-deepep --rollout-top-k -1 \\
   --input-key 7 --sglang-server-concurrency 64 )
cat <<EOF
FAKE_ARGS=( --lr 5 )
EOF
ray job submit --address="http://127.0.0.1:8265" \\
   --runtime-env-json='{
     "env_vars": {"no_proxy": "${MASTER_ADDR}"}
   }' \\
   -- python3 train.py \\
   --actor-num-nodes 16 --actor-num-gpus-per-node 8 --colocate \\
   ${MODEL_ARGS[@]} "${CKPT_ARGS[@]}" ${EVAL_ARGS[@]} ${WANDB_ARGS[@]} ${MISC_ARGS[@]}
"""


def imported_values(path: Path, base: Path | None = None) -> dict[str, dict[str, object]]:
    layer, problems = parse_yaml(import_script(path, base).text, Origin("imported", directory=Path()))
    assert problems == []
    return layer.values


def test_the_recipes_arrays_give_the_values_of_r1_yaml() -> None:
    imported = imported_values(ARRAYS)
    layer, _ = parse_yaml((CONFIGS / "r1.yaml").read_text(), Origin("r1", directory=Path()))
    assert set(imported) == {"ckpt", "rollout", "perf", "grpo", "optimizer", "sglang", "megatron"}
    written = {section: layer.values[section] for section in imported}
    for key in ONLY_IN_R1_YAML:
        section, _, name = key.partition(".")
        assert name in written[section] and name not in imported[section], key
        del written[section][name]
    assert imported == written


def test_the_recipes_arrays_over_its_base_are_the_whole_configuration(write_config: WriteConfig) -> None:
    text = (CONFIGS / "r1.yaml").read_text().replace("hf_config: models", f"hf_config: {CONFIGS}/models")
    # One value of each section is wrong in the base, so that it can only come from the arrays.
    for right, wrong in (
        ("save_interval: 20", "save_interval: 3"),
        ("num_rollout: 3000", "num_rollout: 1"),
        ("max_tokens_per_gpu: 16384", "max_tokens_per_gpu: 7"),
        ("eps_clip_high: 0.28", "eps_clip_high: 0.9"),
        ("optimizer_cpu_offload: true", "optimizer_cpu_offload: false"),
        ("server_concurrency: 1024", "server_concurrency: 1"),
        ("moe_token_dispatcher_type: flex", "moe_token_dispatcher_type: alltoall"),
    ):
        assert right in text
        text = text.replace(right, wrong)
    # And what the recipe does not say may not come from the base.
    text = text.replace("adam_beta2: 0.98", "adam_beta2: 0.5").replace(
        "eps_clip: 0.2", "eps_clip: 0.2\n  use_tis: true"
    )
    base = write_config(text)
    script = write_config(import_script(ARRAYS, base).text, name="imported.yaml")
    assert load_config(script, environ={}).config == load_config(CONFIGS / "r1.yaml", environ={}).config


def test_the_recipes_arrays_are_noticed_where_they_are_old_or_open() -> None:
    assert [notice.replace(str(ARRAYS), "ARRAYS") for notice in import_script(ARRAYS, None).notices] == [
        "ARRAYS:76: OPTIMIZER_ARGS has a placeholder (...): what belongs there is not imported",
        "ARRAYS:40: rollout.dynamic_sampling_filter_path = "
        "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std is an older name: "
        "read as r1hpc.rollout.filters.check_reward_nonzero_std",
        "ARRAYS:86: sglang.enable_ep_moe is an older name: read as sglang.ep_size = rollout_num_gpus_per_engine",
        "ARRAYS:96: sglang.enable_deepep_moe is an older name: read as sglang.moe_a2a_backend = deepep",
        "ARRAYS:114: megatron.moe_enable_deepep is an older name: "
        "read as megatron.moe_flex_dispatcher_backend = deepep",
        "to be set under vars: or in the environment: BASE_DIR",
        "to be added by hand, or with --base CONFIG: "
        "run.name, run.root, hosts.num_nodes, hosts.gpus_per_node, hosts.host_memory_gib",
    ]


def test_a_whole_script_is_read_as_its_program_gets_it(write_config: WriteConfig) -> None:
    path = write_config(SCRIPT, name="run.sh")
    assert imported_values(path) == {
        "vars": {"BASE_DIR": "/data/r1", "DATA": "${BASE_DIR}/data"},
        "hosts": {"num_nodes": 16, "gpus_per_node": 8},
        "ckpt": {
            "hf_checkpoint": "${BASE_DIR}/DeepSeek-R1/",
            "save": "${BASE_DIR}/with space",
            "save_interval": 20,
        },
        "rollout": {"rollout_top_k": -1, "input_key": "7"},
        "eval": {
            "eval_interval": 20,
            "eval_prompt_data": {"aime": "${DATA}/aime.jsonl", "math": "/m/$${literal}.jsonl"},
        },
        "sglang": {"server_concurrency": 64},
        "megatron": {
            "moe_router_dtype": "fp32",
            "moe_token_dispatcher_type": "flex",
            "moe_flex_dispatcher_backend": "deepep",
        },
    }
    notices = import_script(path, None).notices
    for expected in (
        "run.sh:6: source ${SCRIPT_DIR}/models/deepseek-v3.sh is not read: the model comes from config.json, "
        "other flags of that file are missing here",
        "run.sh:38: train.py: ${WANDB_ARGS[@]} is not set in this script",
        "run.sh:27: --moe-token-dispatcher-type was given before (run.sh:14): this one is taken",
        "run.sh: derived from config.json, so left out: --swiglu --num-layers --moe-layer-freq",
        "run.sh:37: hosts.colocate is accepted without effect: training and rollout always share the GPUs",
    ):
        assert expected in notices


def test_the_model_arguments_of_deepseek_scripts_are_understood(write_config: WriteConfig) -> None:
    flags = "--swiglu --no-rope-fusion --moe-grouped-gemm --moe-permute-fusion --moe-token-drop-policy probs"
    flags += " --moe-router-load-balancing-type seq_aux_loss --moe-router-bias-update-rate 0 --moe-aux-loss-coeff 0"
    path = write_config(f"MODEL_ARGS=( {flags} --moe-router-dtype fp32 --attention-backend flash )\n", name="run.sh")
    assert imported_values(path) == {"megatron": {"moe_aux_loss_coeff": 0, "moe_router_dtype": "fp32"}}
    without_effect = [notice for notice in import_script(path, None).notices if "accepted without effect" in notice]
    assert len(without_effect) == 7


def test_an_imported_script_can_be_loaded(write_config: WriteConfig) -> None:
    base = write_config()
    needed = "--ref-load /r --prompt-data /p --num-rollout 1 --rollout-batch-size 4 --n-samples-per-prompt 8"
    needed += " --rollout-max-response-len 64 --custom-rm-path my.reward"
    script = write_config(SCRIPT.replace("--colocate", f"--colocate {needed}"), name="run.sh")
    path = write_config(import_script(script, base).text, name="out.yaml")
    config = load_config(path, environ={}).config
    assert config.eval.eval_prompt_data == {"aime": "/data/r1/data/aime.jsonl", "math": "/m/${literal}.jsonl"}
    assert config.ckpt.save == "/data/r1/with space"
    assert config.run.name == "small"


def test_everything_that_cannot_be_imported_is_told_with_array_and_line(write_config: WriteConfig) -> None:
    script = """\
CKPT_ARGS=(
  stray
  --sav-interval 20
  --save $(date +%F)
  --load $1/x
)
MISC_ARGS=(
  --lr 1 2
  --sglang-mem-fraction-statc 0.5
  --sglang-tp-size 8
  --eval-prompt-data aime
  --moe-router-dtyp fp32
  --use-wandb
  --colocate no
"""
    with pytest.raises(ConfigError) as caught:
        import_script(write_config(script, name="run.sh"), None)
    assert caught.value.problems == [
        "run.sh:7: MISC_ARGS is never closed: a ')' is missing",
        "run.sh:2: CKPT_ARGS: stray stands before any flag",
        "run.sh:3: CKPT_ARGS: --sav-interval: unknown flag; did you mean --save-interval?",
        "run.sh:4: CKPT_ARGS: --save: $(date +%F) would have to be run: write its value in its place",
        "run.sh:5: CKPT_ARGS: --load: $1 would have to be run: write its value in its place",
        "run.sh:8: MISC_ARGS: --lr: takes one value, not 2: 1 2",
        "run.sh:11: MISC_ARGS: --eval-prompt-data: takes pairs, NAME PATH",
        "run.sh:12: MISC_ARGS: --moe-router-dtyp: unknown flag; did you mean --moe-router-dtype?",
        "run.sh:13: MISC_ARGS: --use-wandb: unknown flag",
        'run.sh:14: hosts.colocate = "no": only true is accepted: training and rollout always share the GPUs',
        "run.sh:9: sglang.mem_fraction_statc = 0.5: the installed SGLang has no such argument; "
        "did you mean mem_fraction_static?",
        "run.sh:10: sglang.tp_size = 8: cannot be set here: rollout_num_gpus_per_engine decides it",
    ]


def test_a_script_without_flags_is_told(write_config: WriteConfig) -> None:
    for text in ("echo hello\n", "NAMES=( a b )\n", ""):
        with pytest.raises(ConfigError, match="no flags found: expected arrays such as"):
            import_script(write_config(text, name="run.sh"), None)
    with pytest.raises(ConfigError, match=r"none\.sh: cannot be read"):
        import_script(Path("none.sh"), None)


def test_sections_of_the_import_are_in_the_order_of_the_schema(write_config: WriteConfig) -> None:
    values = imported_values(write_config(SCRIPT, name="run.sh"))
    assert list(values) == [name for name in ("vars", *Config.model_fields) if name in values]


def problems_of(write_config: WriteConfig, script: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        import_script(write_config(script, name="run.sh"), None)
    return caught.value.problems


def notices_of(write_config: WriteConfig, script: str, base: Path | None = None) -> tuple[str, ...]:
    return import_script(write_config(script, name="run.sh"), base).notices


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "LR=1e-6; A_ARGS=(--lr $LR); LR=5e-6\n",
            "run.sh:1: --lr uses LR, which is 1e-6 (line 1) or 5e-6 (line 1): write the value in its place",
        ),
        (
            "A_ARGS=(--lr $LR); LR=5e-6\n",
            "run.sh:1: --lr uses LR, which is set only after that (line 1): set it before",
        ),
        (
            "case $SIZE in\n  small) LR=1;;\n  big) LR=2;;\nesac\nA_ARGS=(--lr $LR)\n",
            "run.sh:5: --lr uses LR, which is 1 (line 2) or 2 (line 3): write the value in its place",
        ),
        (
            "if test -d /x; then LR=1; else LR=2; fi\nA_ARGS=(--lr $LR)\n",
            "run.sh:2: --lr uses LR, which is 1 (line 1) or 2 (line 1): write the value in its place",
        ),
        (
            "LR=1\nLR=$(compute)\nA_ARGS=(--lr $LR)\n",
            "run.sh:3: --lr uses LR, which is 1 (line 1) or only known by running (line 2): "
            "write the value in its place",
        ),
        (
            "LR=1\nfor LR in 2 3; do\nA_ARGS=(--lr $LR)\ndone\n",
            "run.sh:3: --lr uses LR, which is 1 (line 1) or only known by running (line 2): "
            "write the value in its place",
        ),
        (
            "LR=\nA_ARGS=(--lr ${LR:-3})\n",
            "run.sh:2: --lr uses LR, which is empty (line 1) or 3 (line 2): write the value in its place",
        ),
        (
            "A_ARGS=(--lr ${LR:-3} --min-lr ${LR:-2})\n",
            "run.sh:1: --lr uses LR, which is 3 (line 1) or 2 (line 1): write the value in its place",
        ),
        (
            "D=/a\nD=$D/b\nA_ARGS=(--save $D)\n",
            "run.sh:2: D is made of its own value before, and --save (line 3) uses it: write the value in its place",
        ),
        (
            "D=/a\nE=$D/x\nD=/b\nA_ARGS=(--save $E)\n",
            "run.sh:2: E uses D, which is /a (line 1) or /b (line 3): write the value in its place",
        ),
    ],
)
def test_a_variable_whose_value_is_not_one_is_told(write_config: WriteConfig, script: str, problem: str) -> None:
    assert problem in problems_of(write_config, script)


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        ("LR=1e-6\nLR=1e-6\nA_ARGS=(--lr $LR)\n", {"LR": "1e-6"}),
        ("LR=1\nX=2\nX=3\nA_ARGS=(--lr $LR)\n", {"LR": "1"}),  # nothing uses X
        ("LR=1\nA_ARGS=(--lr ${LR:-3})\n", {"LR": "1"}),
        ("N=1\nN=2\nLR=1\nA_ARGS=(--num-layers $N --lr $LR)\n", {"LR": "1"}),  # left out: the model says it
        ("D=/a\nE=$D/x\nA_ARGS=(--save $E)\n", {"E": "${D}/x", "D": "/a"}),
        ("E=${D:-/a}/x\nA_ARGS=(--save $E)\n", {"E": "${D}/x", "D": "/a"}),
        ("LR=1\nLR=2 python other.py\nA_ARGS=(--lr $LR)\n", {"LR": "1"}),  # for that command only
        ("export A=1 B=/x\nA_ARGS=(--lr $A --save $B)\n", {"A": "1", "B": "/x"}),
    ],
)
def test_a_variable_has_its_one_value(write_config: WriteConfig, script: str, variables: dict[str, str]) -> None:
    assert imported_values(write_config(script, name="run.sh"))["vars"] == variables


def test_a_variable_that_is_set_under_a_condition_is_noticed(write_config: WriteConfig) -> None:
    for line in ("if [ -z $D ]; then D=/a; fi", "[ -n $D ] || D=/a", "test -d /a &&\n  D=/a"):
        script = f"{line}\nA_ARGS=(--save $D)\n"
        said = f"run.sh:{line.count(chr(10)) + 1}: D is set under a condition (if, case, loop, && or ||): D=/a is taken"
        assert said in notices_of(write_config, script)
    assert notices_of(write_config, "test -d /a && true\nD=/a\nA_ARGS=(--save $D)\n")[0].startswith("to be added")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "if test -d /x; then A_ARGS=(--lr 1); else A_ARGS=(--lr 2); fi\n",
            "run.sh:1: A_ARGS is set under a condition (if, case, loop, && or ||): write the flags that hold here",
        ),
        (
            "A_ARGS=(--lr 1)\ntest -d /x && A_ARGS+=(--min-lr 0)\nB_ARGS=(--save /x)\n",
            "run.sh:2: A_ARGS is set under a condition (if, case, loop, && or ||): write the flags that hold here",
        ),
        (
            "A_ARGS=(--lr 1)\nA_ARGS=(--lr 2)\n",
            "run.sh:2: A_ARGS was given other flags before (line 1): keep one of the two",
        ),
        (
            "A_ARGS=(${B_ARGS[@]} --lr 1)\nB_ARGS=(${A_ARGS[@]})\n",
            "run.sh:1: A_ARGS contains itself: A_ARGS -> B_ARGS -> A_ARGS",
        ),
    ],
)
def test_an_array_whose_flags_depend_on_the_run_is_told(write_config: WriteConfig, script: str, problem: str) -> None:
    assert problem in problems_of(write_config, script)


def test_an_array_may_grow_in_both_ways(write_config: WriteConfig) -> None:
    script = "A_ARGS=(--lr 1)\nA_ARGS+=(--min-lr 0.5)\nfor i in 1 2; do OTHER+=(x); done\n"
    assert imported_values(write_config(script, name="run.sh")) == {"optimizer": {"lr": 1, "min_lr": 0.5}}
    script = 'A_ARGS=(--lr 1)\nA_ARGS=("${A_ARGS[@]}" --min-lr 0.5)\npython train.py "${A_ARGS[@]}"\n'
    assert imported_values(write_config(script, name="run.sh")) == {"optimizer": {"lr": 1, "min_lr": 0.5}}


@pytest.mark.parametrize(
    ("opening", "token"),
    [("X='it", "'"), ('X="it', '"'), ("X=$(date", "$("), ("X=`date", "`"), ("cat <<EOF", "<<EOF"), ("X=${Y", "${")],
)
def test_what_is_never_closed_is_told_and_drops_nothing_silently(
    write_config: WriteConfig, opening: str, token: str
) -> None:
    (problem,) = problems_of(write_config, f"\n{opening}\nA_ARGS=(--lr 1)\n")
    assert problem == f"run.sh:2: {token} opens here and is never closed: what follows cannot be read"


def test_quotes_and_brackets_in_an_expansion_do_not_end_it(write_config: WriteConfig) -> None:
    script = 'X=$(grep \'(\' "$(echo "a)")" | tr -d \')\')\nY=${Z:-"}"}\nA_ARGS=(--lr 1)\n'
    assert imported_values(write_config(script, name="run.sh")) == {"optimizer": {"lr": 1}}


def test_science_comes_from_the_script_alone_and_what_the_base_loses_is_said(write_config: WriteConfig) -> None:
    base = write_config(
        "ckpt: {hf_checkpoint: /b, hf_config: /m/config.json, bf16_checkpoint: /b16, keep: 5, save_interval: 7}\n"
        "optimizer: {lr: 0.5, clip_grad: 1.0}\nsglang: {max_total_tokens: 8, ep_size: 1}\neval:\n"
        "hosts: {slots: 8}\nslurm: {partition: p, account: '00123'}\nvars: {D: /old, E: /e}\n",
        name="base.yaml",
    )
    imported = import_script(write_config("D=/new\nA_ARGS=(--save $D --save-interval 3)\n", name="run.sh"), base)
    layer, _ = parse_yaml(imported.text, Origin("imported", directory=Path()))
    assert layer.values == {
        "vars": {"D": "/new", "E": "/e"},
        "hosts": {"gpus_per_node": 8},
        "slurm": {"partition": "p", "account": "00123"},
        "ckpt": {
            "hf_config": "/m/config.json",
            "bf16_checkpoint": "/b16",
            "save": "${D}",
            "save_interval": 3,
        },
    }
    assert imported.notices[:2] == (
        "vars.D = /new of the script replaces /old of base.yaml, also where base.yaml uses it",
        "base.yaml: what is trained comes from the script alone, so not taken: "
        "ckpt.hf_checkpoint, ckpt.keep, optimizer.lr, sglang.max_total_tokens",
    )
