"""The tiny R1: the released form, values that depend on seed and name alone, models that transformers runs."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from r1hpc.checkpoint.names import tensors
from r1hpc.errors import CheckpointError, ConfigError
from r1hpc.plan.model_shape import ModelShapeError, read_model_shape
from r1hpc.rehearsal.tiny_config import read_overrides
from r1hpc.rehearsal.tiny_model import main, write_tiny_model
from r1hpc.rehearsal.tiny_shards import MAX_SHARD_BYTES, plan_shards

REPOSITORY = Path(__file__).parents[2]

ODD_SIZES = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "moe_intermediate_size": 160,
    "q_lora_rank": 96,
    "kv_lora_rank": 72,
    "vocab_size": 300,
}
"""Not one of them a multiple of 128."""


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_all(directory: Path) -> dict[str, Tensor]:
    """Every tensor, read from the file in which the index places it."""
    weight_map = read_json(directory / "model.safetensors.index.json")["weight_map"]
    found = {}
    for name, file in weight_map.items():
        with safe_open(directory / file, framework="pt") as shard:
            found[name] = shard.get_tensor(name)
    assert found
    return found


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """Element by element: the code times the scale of its 128 x 128 block."""
    rows = torch.arange(codes.shape[0]) // 128
    columns = torch.arange(codes.shape[1]) // 128
    return codes.float() * scales[rows][:, columns]


def test_files_are_those_of_the_release(tmp_path: Path) -> None:
    out = tmp_path / "below" / "tiny"
    made = write_tiny_model(out)
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        *shards,
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [file.name for file in out.parent.iterdir()] == ["tiny"]
    modes = {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()}
    assert len(modes) == 1, "weights are as readable as the other files"
    config = read_json(out / "config.json")
    assert config == read_json(REPOSITORY / "configs/models/tiny-r1/config.json")
    index = read_json(out / "model.safetensors.index.json")
    weights = read_all(out)
    assert (made.num_tensors, made.num_shards) == (len(weights), 3)
    assert index["metadata"]["total_size"] == made.size_bytes == sum(tensor.nbytes for tensor in weights.values())
    for file in shards:
        with safe_open(out / file, framework="pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert set(shard.keys()) == {name for name, place in index["weight_map"].items() if place == file}


def test_fp8_weights_have_scales_and_the_rest_is_bf16_but_for_the_routers_bias(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "odd", overrides=ODD_SIZES)
    weights = read_all(tmp_path / "odd")
    names = tensors(read_model_shape(tmp_path / "odd"))
    scales = {name.hf + "_scale_inv" for name in names if name.quantized}
    assert set(weights) == {name.hf for name in names} | scales
    # 5 attention projections a layer, 3 projections of the dense layer, 3 of each of 8 experts and the shared one in
    # each of 4 layers and the MTP layer.
    assert len(scales) == 6 * 5 + 3 + 5 * 9 * 3
    assert {tensor.dtype for name, tensor in weights.items() if name + "_scale_inv" in scales} == {torch.float8_e4m3fn}
    assert {weights[name].dtype for name in scales} == {torch.float32}
    rest = {name: tensor.dtype for name, tensor in weights.items() if name not in scales | {s[:-10] for s in scales}}
    biases = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3, 4, 5)}
    assert {name for name, dtype in rest.items() if dtype != torch.bfloat16} == biases
    assert {rest[name] for name in biases} == {torch.float32}
    down = "model.layers.5.mlp.experts.7.down_proj.weight"
    assert (tuple(weights[down].shape), tuple(weights[down + "_scale_inv"].shape)) == ((192, 160), (2, 2))
    latent = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert (tuple(weights[latent].shape), tuple(weights[latent + "_scale_inv"].shape)) == ((72 + 16, 192), (1, 2))


def test_fp8_is_the_bf16_model_of_the_same_seed_rounded(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "fp8", overrides=ODD_SIZES)
    write_tiny_model(tmp_path / "bf16", overrides=ODD_SIZES, fp8=False)
    codes, exact = read_all(tmp_path / "fp8"), read_all(tmp_path / "bf16")
    assert "quantization_config" not in read_json(tmp_path / "bf16/config.json")
    compared = 0
    for name, values in exact.items():
        if codes[name].dtype == values.dtype:
            assert raw(codes[name]) == raw(values), name
            continue
        scales = codes[name + "_scale_inv"]
        # e4m3 has 3 bits after the leading one: half a step is 1/16 of the value, or of the least normal 2^-6.
        steps = values.float().abs().clamp_min(2**-6 * scales.max()) / 16
        error = (dequantized(codes[name], scales) - values.float()).abs()
        assert bool((error <= 1.001 * steps).all()), name
        assert codes[name].float().abs().max() == 448, name
        compared += 1
    assert compared == 6 * 5 + 3 + 5 * 9 * 3


def test_values_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    def written(name: str, **options: Any) -> dict[str, bytes]:
        write_tiny_model(tmp_path / name, **options)
        return {tensor: raw(values) for tensor, values in read_all(tmp_path / name).items()}

    three = written("three", seed=5)
    again = written("again", seed=5)
    files = [file.name for file in (tmp_path / "three").iterdir()]
    assert len(files) == 8
    assert [f for f in files if (tmp_path / "three" / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []
    assert again == three
    assert written("seven", seed=5, shards=7) == three
    without = written("without", seed=5, mtp=False)
    assert without == {name: values for name, values in three.items() if not name.startswith("model.layers.5.")}
    assert len(without) < len(three)
    other = written("other", seed=6)
    weights = [name for name in three if not name.endswith("_scale_inv")]
    assert [name for name in weights if other[name] == three[name]] == []
    assert len({three[name] for name in weights}) == len(weights) - 2, "only MTP's embedding and head repeat a tensor"


def test_scales_tell_tensors_and_blocks_apart(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "odd", overrides=ODD_SIZES)
    scales = {name: tensor for name, tensor in read_all(tmp_path / "odd").items() if name.endswith("_scale_inv")}
    assert len({raw(tensor) for tensor in scales.values()}) == len(scales)
    uneven = [name for name, tensor in scales.items() if tensor.numel() > 1 and tensor.max() > tensor.min()]
    assert len(uneven) > 0.9 * len(scales)


def test_mtp_repeats_embedding_and_head(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    weights = read_all(tmp_path / "tiny")
    assert raw(weights["model.layers.5.embed_tokens.weight"]) == raw(weights["model.embed_tokens.weight"])
    assert raw(weights["model.layers.5.shared_head.head.weight"]) == raw(weights["lm_head.weight"])


def test_values_have_the_spread_that_keeps_a_model_sane(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny", fp8=False, overrides={"hidden_size": 256, "vocab_size": 1024})
    weights = read_all(tmp_path / "tiny")

    def spread(name: str) -> tuple[float, float]:
        values = weights[name].double()
        return values.mean().item(), values.std().item()

    # 2^18 values: mean and deviation of a sample lie within 1 % of the deviation of what they are drawn from.
    for name, deviation in (
        ("model.embed_tokens.weight", 1.0),
        ("lm_head.weight", 2 / math.sqrt(256)),
    ):
        assert spread(name) == pytest.approx((0.0, deviation), abs=0.01 * deviation), name
    mean, deviation = spread("model.layers.0.mlp.down_proj.weight")
    assert abs(mean) < 0.02 / 16
    assert 0.74 / 16 < deviation < 1.26 / 16
    assert spread("model.norm.weight") == pytest.approx((1.0, 0.1), abs=0.02)
    bias = weights["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert 0 < bias.min() < bias.max() < 0.2


@pytest.mark.parametrize("overrides", [{}, ODD_SIZES, {"q_lora_rank": None, "num_nextn_predict_layers": 0}])
def test_transformers_loads_it_and_finds_moderate_logits(tmp_path: Path, overrides: dict[str, Any]) -> None:
    from transformers import DeepseekV3ForCausalLM

    write_tiny_model(tmp_path / "tiny", overrides=overrides, fp8=False)
    loaded: Any = DeepseekV3ForCausalLM.from_pretrained(
        tmp_path / "tiny", dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert (report["missing_keys"], report["mismatched_keys"]) == (set(), set())
    assert {name.split("layers.")[1].split(".")[0] for name in report["unexpected_keys"]} <= {"5"}, "MTP alone"
    weights = read_all(tmp_path / "tiny")
    up = weights["model.layers.4.mlp.experts.7.up_proj.weight"].float()
    assert torch.equal(model.model.layers[4].mlp.experts.gate_up_proj[7, len(up) :], up)
    tokens = torch.randint(0, 256, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens).logits
    assert bool(logits.isfinite().all())
    # The head has deviation 2 / sqrt(hidden) and reads a normed state: logits have deviation 2.
    assert logits.std().item() == pytest.approx(2, rel=0.15)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    out = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(out)
    return AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " two  spaces, a tab\t and a line\n\n",
        "Ünïcödé 你好 🎉 \u00a0\u200b\ufeff",
        "".join(map(chr, range(256))),
        "<think>1 < 2</think> <｜User｜><｜end▁of▁sentence｜>",  # noqa: RUF001
    ],
)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_token_ids_are_bytes_between_special_tokens(tokenizer: Any) -> None:
    # config.json: begin of sentence 1, end 2; so 0 is for padding, and byte b is token 3 + b.
    assert tokenizer.encode("A é", add_special_tokens=False) == [3 + 0x41, 3 + 0x20, 3 + 0xC3, 3 + 0xA9]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 263)
    assert tokenizer.encode("<think>\n</think>", add_special_tokens=False) == [259, 3 + 10, 260]
    assert tokenizer.encode("x") == [3 + ord("x")], "no begin of sentence: the chat template writes it"
    assert tokenizer.decode([1, 259, 3 + ord("x"), 2], skip_special_tokens=True) == "<think>x"


def test_chat_template_is_r1s(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " 1 + 1?\n"},
        {"role": "assistant", "content": "<think>\nsum\n</think>\n2"},
        {"role": "user", "content": "2 + 2?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜> 1 + 1?\n<｜Assistant｜>\n2<｜end▁of▁sentence｜>"  # noqa: RUF001
        "<｜User｜>2 + 2?<｜Assistant｜><think>\n"  # noqa: RUF001
    )
    assert tokenizer.apply_chat_template(messages[1:2], tokenize=False) == (
        "<｜begin▁of▁sentence｜><｜User｜> 1 + 1?\n"  # noqa: RUF001
    )


def test_ids_of_the_config_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny", overrides={"bos_token_id": 0, "eos_token_id": 262, "vocab_size": 263})
    vocab = read_json(tmp_path / "tiny/tokenizer.json")["model"]["vocab"]
    assert (vocab["<｜begin▁of▁sentence｜>"], vocab["<｜end▁of▁sentence｜>"], vocab["A"]) == (0, 262, 2 + 0x41)  # noqa: RUF001
    assert sorted(vocab.values()) == list(range(263))
    generation = read_json(tmp_path / "tiny/generation_config.json")
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, 262)


def test_shards_are_of_about_equal_bytes_and_none_is_empty() -> None:
    equal = [(f"t{i}", 10) for i in range(12)]
    assert [len(shard) for shard in plan_shards(equal, 4)] == [3, 3, 3, 3]
    giant_first = [("giant", 1000), ("a", 1), ("b", 1)]
    assert plan_shards(giant_first, 3) == [["giant"], ["a"], ["b"]]
    giant_last = [("a", 1), ("b", 1), ("giant", 1000)]
    assert plan_shards(giant_last, 3) == [["a"], ["b"], ["giant"]]
    assert plan_shards(giant_first, 1) == [["giant", "a", "b"]]


def test_more_shards_are_taken_than_asked_for_where_one_would_be_too_large() -> None:
    sixteenth = MAX_SHARD_BYTES // 16
    plan = plan_shards([(f"t{i}", sixteenth) for i in range(64)], 1)
    assert [len(shard) for shard in plan] == [16, 16, 16, 16]


@pytest.mark.parametrize("shards", [0, -1, 4])
def test_as_many_files_as_tensors_at_most(shards: int) -> None:
    with pytest.raises(CheckpointError, match=rf"--shards {shards}: the model has 3 tensors; take 1 to 3 files"):
        plan_shards([("a", 1), ("b", 1), ("c", 1)], shards)


def test_what_exists_is_refused_and_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    write_tiny_model(out, seed=1)
    (out / "left over").touch()
    before = (out / "model-00001-of-00003.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists; give another directory, or --force to replace it"):
        write_tiny_model(out, seed=2)
    assert (out / "model-00001-of-00003.safetensors").read_bytes() == before
    write_tiny_model(out, seed=2, force=True)
    assert (out / "model-00001-of-00003.safetensors").read_bytes() != before
    assert not (out / "left over").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


def test_force_replaces_nothing_but_checkpoints(tmp_path: Path) -> None:
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("chapter 1", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds no config.json; --force replaces checkpoints and nothing else"):
        write_tiny_model(tmp_path / "home", force=True)
    assert precious.read_text(encoding="utf-8") == "chapter 1"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/tiny: cannot be written \(File exists: .*/file\)"):
        write_tiny_model(tmp_path / "file" / "tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"hiden_size": 192}, "hiden_size=192: config.json has no such key; did you mean hidden_size?"),
        ({"hidden_size": "big"}, "hidden_size='big': is a text; config.json has the number 128"),
        ({"rope_scaling": 4}, "rope_scaling=4: is a number; config.json has the object"),
        ({"vocab_size": 262}, "vocab_size is 262; the tokenizer needs 256 bytes + 3 special tokens + 4 marks = 263"),
        ({"bos_token_id": 320}, "bos_token_id is 320; it must be a whole number from 0 to vocab_size - 1 = 319"),
        ({"bos_token_id": 2}, "bos_token_id and eos_token_id are both 2; give each its own"),
        ({"num_attention_heads": 8}, "num_key_value_heads is 4 and num_attention_heads 8;"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim is 15; rotary dimensions come in pairs: make it even"),
        ({"n_group": 3}, "n_routed_experts / n_group = 8 / 3 = 2.66667; the router"),
        ({"n_group": 8}, "n_routed_experts / n_group = 8 / 8 = 1; the router"),
        ({"topk_group": 3}, "topk_group is 3 of n_group = 2; choose at most all groups"),
        ({"num_experts_per_tok": 5}, "topk_group * n_routed_experts / n_group = 1 * 8 / 2 = 4 experts"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            "weight_block_size is (64, 64); it must be (128, 128), as released",
        ),
    ],
)
def test_what_no_model_could_be_is_refused(tmp_path: Path, overrides: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_tiny_model(tmp_path / "tiny", overrides=overrides)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_are_none_are_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelShapeError, match=r"tiny-r1/config.json: hidden_size is 0; it must be a whole number"):
        write_tiny_model(tmp_path / "tiny", overrides={"hidden_size": 0})


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    (tmp_path / "cut.json").write_text("{", encoding="utf-8")
    for name, problem in (
        ("none.json", "cannot be read (No such file or directory)"),
        ("list.json", "holds a list; a config.json is one JSON object"),
        ("cut.json", "is not JSON"),
    ):
        with pytest.raises(ConfigError) as caught:
            write_tiny_model(tmp_path / "tiny", config=tmp_path / name)
        assert f"{tmp_path / name}: {problem}" in str(caught.value)


def test_words_of_the_command_line_are_json_or_texts() -> None:
    words = ["hidden_size=192", "q_lora_rank=null", "hidden_act=gelu", 'rope_scaling={"type": "yarn"}']
    assert read_overrides(words) == {
        "hidden_size": 192,
        "q_lora_rank": None,
        "hidden_act": "gelu",
        "rope_scaling": {"type": "yarn"},
    }
    with pytest.raises(ConfigError, match="--set hidden_size: is written --set key=value"):
        read_overrides(["hidden_size"])


def test_command_line_writes_what_the_function_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "hidden_size=192", "q_lora_rank=96", "--set", "vocab_size=300"]
    assert main([str(tmp_path / "typed"), *words, "--seed", "3", "--shards", "2", "--no-mtp", "--bf16"]) == 0
    assert "tensors, " in capsys.readouterr().out
    overrides = {"hidden_size": 192, "q_lora_rank": 96, "vocab_size": 300}
    write_tiny_model(tmp_path / "called", overrides=overrides, seed=3, shards=2, mtp=False, fp8=False)
    files = sorted(file.name for file in (tmp_path / "called").iterdir())
    assert len(files) == 2 + 5
    for name in files:
        assert (tmp_path / "typed" / name).read_bytes() == (tmp_path / "called" / name).read_bytes(), name


def test_command_line_says_what_is_wrong_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "tiny"), "--set", "vocab=320"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "tiny_model: 1 configuration problem:\n  vocab=320: config.json has no such key; did you mean vocab_size?\n"
    )


def test_the_private_slurm_loads_no_torch() -> None:
    code = "import sys, r1hpc.rehearsal.cli, r1hpc.rehearsal.rehearse; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0
