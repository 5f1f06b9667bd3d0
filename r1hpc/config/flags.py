"""Every flag of the recipe and what carries it out here, as data: docs/flags.md is made of it and tests hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What becomes of a flag."""

    DONE = "done by"
    BUILT_IN = "satisfied by construction"
    NO_EFFECT = "accepted without effect"


@dataclass(frozen=True)
class Flag:
    """One flag of the recipe."""

    flag: str
    """Without its dashes."""
    value: str
    """As the recipe writes it; empty for a switch."""
    key: str
    """section.name of the configuration."""
    kind: Kind
    what: str
    """What it means here, in words."""
    by: tuple[str, ...] = ()
    """What reads it or does it: `package.module:attribute`, or a module."""
    tests: tuple[str, ...] = ()
    """What shows it: `tests/file.py::test`."""
    refused: tuple[str, ...] = ()
    """Overrides that loading the recipe's configuration with refuses; the message says why."""


_DONE, _BUILT_IN, _NO_EFFECT = Kind
_LOOP = "tests/run/test_loop.py"
_ROW = "tests/data/test_record.py::test_a_row_that_is_a_prompt"
_REFERENCE = "tests/rollout/test_sampler_reference.py::test_rollouts_without_recycling_equal_the_reference"
_ENGINE = "tests/rollout/test_engine_args.py::test_the_command_of_every_process_of_both_engines_of_r1"
_ENGINE_ARGS = "r1hpc.rollout.engine_args:server_arguments"
_RULES = "tests/config/test_rules.py::test_a_broken_rule_is_told_with_its_numbers"
_R1_YAML = "tests/config/test_shipped_configs.py::test_r1_yaml_is_the_recipe"
_OLDER = "tests/config/test_older_names.py::test_the_recipes_older_flags_mean_todays_values"
_A0 = "tests/plan/test_table_a0.py"
_CHECKPOINT, _PACKING = "tests/train/test_trainer_checkpoint.py", "tests/train/test_packing.py"
_TERMS, _LOSS = "tests/train/test_grpo_terms.py", "tests/train/test_grpo_loss.py"
_ATTENTION, _CONTEXT = "tests/model/test_attention.py", "tests/model/test_context_attention.py"
_LAYOUTS = "tests/train/parity/test_layouts.py"
_GRADIENT = f"{_LAYOUTS}::test_the_gradient_is_that_of_one_process"
_MODEL_CONFIG, _EXPERTS = "tests/model/test_config.py", "tests/model/test_experts.py"
_HOST_ADAM = "tests/train/test_host_adam.py"

# *("flag", "value", "key", KIND) keeps what identifies a row on one line.
_CKPT_ARGS = (
    Flag(
        *("hf-checkpoint", "$BASE_DIR/DeepSeek-R1/", "ckpt.hf_checkpoint", _DONE),
        "its config.json gives every size of the model; the engine boots from it, its tokenizer is the run's, and its "
        "quantization_config decides the format of every weight sync",
        (
            "r1hpc.plan.model_shape:read_model_shape",
            "r1hpc.model.config:transformer_config",
            "r1hpc.checkpoint.hf_checkpoint:open_checkpoint",
        ),
        (f"{_A0}::test_parameters", f"{_MODEL_CONFIG}::test_every_field_of_the_shipped_models"),
        ("megatron.num_layers=61",),
    ),
    Flag(
        *("ref-load", "$BASE_DIR/DeepSeek-R1_torch_dist/", "ckpt.ref_load", _DONE),
        "weights of the frozen reference, and of the first iteration where load has no checkpoint",
        (
            "r1hpc.checkpoint.load:load_weights",
            "r1hpc.train.host_weights:HostWeights",
            "r1hpc.train.checkpoint.load:load_reference",
        ),
        (f"{_CHECKPOINT}::test_the_reference_is_read_from_it_without_the_optimizer",),
        ("ckpt.ref_load=null",),
    ),
    Flag(
        *("load", "$BASE_DIR/DeepSeek-R1_slime/", "ckpt.load", _DONE),
        "a checkpoint there is resumed; absent or empty starts from ref_load at rollout 0; files without a checkpoint "
        "are refused unless ckpt.fresh",
        ("r1hpc.train.checkpoint.start:where_to_start", "r1hpc.train.checkpoint.load:load_trainer"),
        (f"{_CHECKPOINT}::test_weights_masters_and_moments_come_back_bit_for_bit_at_any_layout",),
    ),
    Flag(
        *("save", "$BASE_DIR/DeepSeek-R1_slime/", "ckpt.save", _DONE),
        "weights, masters, moments and random states, written from host memory while the next rollout runs",
        ("r1hpc.train.checkpoint.save:begin_save", "r1hpc.train.checkpoint.save:PendingSave"),
        (f"{_CHECKPOINT}::test_every_tensor_is_stored_whole_and_once",),
        ("ckpt.save=${BASE_DIR}/DeepSeek-R1_torch_dist/",),
    ),
    Flag(
        *("save-interval", "20", "ckpt.save_interval", _DONE),
        "a commit is due after so many iterations, and also by ckpt.save_minutes and before the allocation ends",
        ("r1hpc.clock:SaveClock", "r1hpc.saving:Saving", "r1hpc.plan.storage:make_storage"),
        (f"{_LOOP}::test_every_iteration_is_recorded_once_with_evaluations_where_they_are_due",),
    ),
)

_ROLLOUT_ARGS = (
    Flag(
        *("prompt-data", "/root/dapo-math-17k/dapo-math-17k.jsonl", "rollout.prompt_data", _DONE),
        "jsonl or parquet, also a slice path@[a:b]; every line is checked at the start",
        ("r1hpc.data.prompts:open_prompts", "r1hpc.data.files:open_rows", "r1hpc.plan.batches:make_batches"),
        (
            f"{_A0}::test_prompts_and_epochs",
            "tests/data/test_files.py::test_slices",
            "tests/data/test_prompts.py::test_the_configuration_decides",
        ),
    ),
    Flag(
        *("input-key", "prompt", "rollout.input_key", _DONE),
        "the prompt of a line; a line without it is counted as bad",
        ("r1hpc.data.record:RecordFormat",),
        (_ROW, "tests/data/test_dataset.py::test_a_wrong_key_names_the_keys_that_are_there"),
    ),
    Flag(
        *("label-key", "label", "rollout.label_key", _DONE),
        "what the reward compares with, text or a number; a line without it is counted as bad",
        ("r1hpc.data.record:RecordFormat", "r1hpc.rollout.grading:Grader"),
        (_ROW, "tests/data/test_dataset.py::test_a_prompt_carries_what_its_row_says"),
        ("rollout.label_key=null",),
    ),
    Flag(
        *("apply-chat-template", "", "rollout.apply_chat_template", _DONE),
        "a text becomes one message of a user, the template begins the answer, and no special token is added again",
        ("r1hpc.data.template:PromptEncoder",),
        ("tests/data/test_template.py::test_a_text_becomes_the_message_of_a_user_and_the_answer_is_begun",),
    ),
    Flag(
        *("rollout-shuffle", "", "rollout.rollout_shuffle", _DONE),
        "each epoch is a permutation of the file, a pure function of (rollout_seed, epoch)",
        ("r1hpc.data.order:epoch_order", "r1hpc.data.prompts:PromptSource"),
        (
            "tests/data/test_order.py::test_an_order_has_every_place_once_and_is_pure",
            "tests/data/test_prompts.py::test_each_prompt_comes_once_an_epoch",
        ),
    ),
    Flag(
        *("rm-type", "deepscaler", "rollout.rm_type", _DONE),
        "graded in processes that can be killed; rm_type in a line's metadata takes its place for that line",
        ("r1hpc.rollout.grading:Grader", "r1hpc.rewards.kinds:grader_of", "r1hpc.rewards.pool:RewardPool"),
        (
            "tests/rewards/test_deepscaler.py::test_answer_gets_the_reward_of_the_table",
            "tests/rewards/test_pool.py::test_metadata_overrides_a_built_in_kind_by_another",
        ),
        ("rollout.rm_type=null", "rollout.custom_rm_path=my.reward"),
    ),
    Flag(
        *("num-rollout", "3000", "rollout.num_rollout", _DONE),
        "the loop ends after this many, absolute, so that a resumed run goes on to the same end; the schedule of the "
        "learning rate counts with it too",
        ("r1hpc.loop:Loop", "r1hpc.plan.batches:make_batches", "r1hpc.train.settings:TrainerConfig"),
        (
            f"{_A0}::test_samples_and_steps",
            f"{_LOOP}::test_killed_at_any_step_the_next_attempts_train_what_an_uninterrupted_run_trains",
        ),
    ),
    Flag(
        *("rollout-batch-size", "128", "rollout.rollout_batch_size", _DONE),
        "prompts kept: the rollout ends with so many groups, and the rest is aborted",
        ("r1hpc.rollout.sampler:Sampler", "r1hpc.rollout.oversampling:OverSampling", "r1hpc.plan.batches:make_batches"),
        (f"{_A0}::test_samples_and_steps", _REFERENCE),
    ),
    Flag(
        *("n-samples-per-prompt", "8", "rollout.n_samples_per_prompt", _DONE),
        "one group; advantages are centred by group_index, so groups of other sizes are right too",
        ("r1hpc.rollout.sampler:Sampler", "r1hpc.train.grpo:group_advantages"),
        ("tests/train/test_grpo_advantages.py::test_interleaved_groups_of_unequal_sizes_never_mix", _REFERENCE),
        ("rollout.n_samples_per_prompt=1",),
    ),
    Flag(
        *("rollout-max-response-len", "32768", "rollout.rollout_max_response_len", _DONE),
        "tokens generated at most; a response that goes on has what is left of them. The plan counts with the longest "
        "sample",
        (
            "r1hpc.rollout.sampler:Sampler",
            "r1hpc.rollout.protocol:Request",
            "r1hpc.plan.engine_problems:engine_problems",
        ),
        (
            "tests/rollout/test_sampler_recycling.py"
            "::test_a_partial_group_goes_on_with_the_tokens_that_are_left_of_its_limit",
        ),
    ),
    Flag(
        *("rollout-temperature", "0.8", "rollout.rollout_temperature", _DONE),
        "every log-prob and entropy of the trainer divides the logits by it; the engines sample with it, and their "
        "log-probs have it",
        ("r1hpc.rollout.sampler:Sampler", "r1hpc.train.logprobs:token_logprobs", "r1hpc.train.passes:Passes"),
        (
            "tests/rollout/test_engine_parity.py::test_logprobs_are_those_of_the_distribution_that_was_sampled_from",
            "tests/train/test_logprobs.py::test_equals_log_softmax_of_all_logits_whatever_the_shards_chunks_and_temperature",
        ),
    ),
    Flag(
        *("over-sampling-batch-size", "256", "rollout.over_sampling_batch_size", _DONE),
        "prompts of one wave; another one follows when so many were rejected that too few are left to be kept",
        ("r1hpc.rollout.sampler:Sampler", "r1hpc.rollout.oversampling:OverSampling", "r1hpc.plan.batches:make_batches"),
        (f"{_A0}::test_client_concurrency_is_one_wave", _REFERENCE),
        ("rollout.over_sampling_batch_size=127",),
    ),
    Flag(
        "dynamic-sampling-filter-path",
        "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
        *("rollout.dynamic_sampling_filter_path", _DONE),
        "the filter of the sampler. This path is read as r1hpc.rollout.filters.check_reward_nonzero_std, with a notice",
        (
            "r1hpc.config.aliases:VALUE_ALIASES",
            "r1hpc.rollout.filters:GroupFilter",
            "r1hpc.sampling_parts:make_sampler",
        ),
        (
            "tests/config/test_older_names.py::test_the_recipes_filter_path_is_ours",
            "tests/rollout/test_filters.py::test_groups_of_equal_rewards_are_rejected",
        ),
    ),
    Flag(
        *("num-steps-per-rollout", "4", "rollout.num_steps_per_rollout", _DONE),
        "optimizer steps on the samples of a rollout; the old log-probs of all are of the weights before the first",
        ("r1hpc.plan.batches:steps_per_rollout", "r1hpc.train.step:Stepper"),
        (f"{_A0}::test_samples_and_steps",),
        ("rollout.num_steps_per_rollout=3",),
    ),
    Flag(
        *("balance-data", "", "rollout.balance_data", _DONE),
        "levels the estimated FLOPs of micro-batches and data-parallel ranks; the plan warns where there is one rank",
        ("r1hpc.train.packing:pack", "r1hpc.train.balance:level", "r1hpc.train.flops:sequence_cost"),
        (
            "tests/plan/test_warnings.py::test_balancing_needs_data_parallel_ranks",
            f"{_PACKING}::test_balance_deals_the_dearest_with_the_cheapest",
        ),
    ),
)

_PERF_ARGS = (
    Flag(
        *("tensor-model-parallel-size", "8", "perf.tensor_model_parallel_size", _DONE),
        "heads, dense and shared-expert MLPs and the vocabulary over the ranks of a node",
        ("r1hpc.model.parallel:Layout", "r1hpc.plan.topology:Topology"),
        (
            f"{_A0}::test_rank_order_and_where_groups_stand",
            f"{_ATTENTION}::test_ranks_together_give_the_numbers_of_a_dense_implementation",
            _GRADIENT,
        ),
    ),
    Flag(
        *("sequence-parallel", "", "perf.sequence_parallel", _DONE),
        "on wherever tensor ranks share a layer: Megatron refuses experts without it",
        (
            "r1hpc.model.parallel:Layout.sequence_parallel",
            "r1hpc.model.linear:ReplicatedLinear",
            "r1hpc.model.norm:RMSNorm",
        ),
        (_RULES, f"{_ATTENTION}::test_ranks_together_give_the_numbers_of_a_dense_implementation"),
        ("perf.sequence_parallel=false",),
    ),
    Flag(
        *("pipeline-model-parallel-size", "4", "perf.pipeline_model_parallel_size", _DONE),
        "stages of Megatron's one-forward-one-backward schedule, with variable lengths",
        ("r1hpc.model.parallel:Layout", "r1hpc.train.passes:Passes"),
        (f"{_A0}::test_rank_order_and_where_groups_stand", _GRADIENT),
    ),
    Flag(
        *("context-parallel-size", "4", "perf.context_parallel_size", _DONE),
        "each sequence cut zig-zag into 2 * CP chunks; attention gathers the latents and merges by log-sum-exp",
        (
            "r1hpc.model.packed:pack_sequences",
            "r1hpc.model.context_attention:packed_attention",
            "r1hpc.train.collate:collate",
        ),
        (f"{_CONTEXT}::test_outputs_and_gradients_are_those_of_a_dense_softmax", _GRADIENT),
    ),
    Flag(
        *("expert-model-parallel-size", "32", "perf.expert_model_parallel_size", _DONE),
        "the experts of a layer over the ranks of its stage",
        ("r1hpc.model.experts:GroupedExperts", "r1hpc.model.parallel:Layout"),
        (
            "tests/plan/test_topology.py::test_groups_are_those_of_megatron",
            f"{_EXPERTS}::test_grouped_experts_are_a_loop_over_experts",
        ),
    ),
    Flag(
        *("expert-tensor-parallel-size", "1", "perf.expert_tensor_parallel_size", _BUILT_IN),
        "an expert's matrices are whole on their rank",
        ("r1hpc.model.experts:GroupedExperts",),
        (f"{_EXPERTS}::test_checkpoint_boxes_are_views_of_whole_experts_gate_above_up",),
        ("perf.expert_tensor_parallel_size=2",),
    ),
    Flag(
        *("decoder-last-pipeline-num-layers", "13", "perf.decoder_last_pipeline_num_layers", _DONE),
        "layers of the last stage; the others must divide evenly",
        ("r1hpc.model.parallel:Layout.layers_of_stages",),
        (f"{_A0}::test_layers_of_each_stage",),
    ),
    Flag(
        *("recompute-granularity", "full", "perf.recompute_granularity", _DONE),
        "whole layers are computed again in the backward pass, by Megatron's transformer block; selective needs "
        "megatron.recompute_modules, for attention never keeps its scores",
        ("r1hpc.model.config:transformer_config", "r1hpc.plan.activations:activation_parts"),
        (
            "tests/plan/test_memory.py::test_saved_layer_inputs_follow_the_pipeline_depth",
            f"{_MODEL_CONFIG}::test_layout_precision_and_recomputation_of_the_recipe",
            f"{_LAYOUTS}::test_recomputation_changes_nothing",
        ),
        ("perf.recompute_granularity=null",),
    ),
    Flag(
        *("recompute-method", "uniform", "perf.recompute_method", _DONE),
        "as Megatron's",
        ("r1hpc.model.config:transformer_config", "r1hpc.plan.activations:activation_parts"),
        (f"{_MODEL_CONFIG}::test_layout_precision_and_recomputation_of_the_recipe",),
        ("perf.recompute_method=null",),
    ),
    Flag(
        *("recompute-num-layers", "1", "perf.recompute_num_layers", _DONE),
        "as Megatron's",
        ("r1hpc.model.config:transformer_config", "r1hpc.plan.activations:activation_parts"),
        (f"{_MODEL_CONFIG}::test_layout_precision_and_recomputation_of_the_recipe",),
        ("perf.recompute_num_layers=null",),
    ),
    Flag(
        *("use-dynamic-batch-size", "", "perf.use_dynamic_batch_size", _DONE),
        "micro-batches are packed by tokens; without it each sample is one; the loss is the same either way",
        ("r1hpc.train.packing:pack",),
        (f"{_PACKING}::test_one_sample_each_without_dynamic_batches", f"{_LAYOUTS}::test_packing_changes_nothing"),
    ),
    Flag(
        *("max-tokens-per-gpu", "16384", "perf.max_tokens_per_gpu", _DONE),
        "times CP, in raw lengths; a longer sample is a micro-batch of its own, never cut",
        ("r1hpc.train.packing:pack",),
        (
            f"{_A0}::test_micro_batch_token_cap",
            f"{_PACKING}::test_an_oversize_sample_is_alone_and_whole",
        ),
        ("perf.max_tokens_per_gpu=null",),
    ),
)

_GRPO_ARGS = (
    Flag(
        *("advantage-estimator", "grpo", "grpo.advantage_estimator", _DONE),
        "rewards centred by group, over their std; by their mean alone with disable_grpo_std_normalization",
        ("r1hpc.train.grpo:group_advantages",),
        ("tests/train/test_grpo_advantages.py::test_equals_numpy_a_group_at_a_time",),
        ("grpo.advantage_estimator=ppo",),
    ),
    Flag(
        *("use-kl-loss", "", "grpo.use_kl_loss", _DONE),
        "the reference's log-probs, by its weights swapped in from host memory, and their KL",
        ("r1hpc.train.host_weights:HostWeights", "r1hpc.train.grpo:grpo_loss"),
        (
            "tests/plan/test_warnings.py::test_a_coefficient_of_zero_has_its_price",
            f"{_LOSS}::test_kl_is_a_metric_only_unless_its_loss_coefficient_is_set",
        ),
    ),
    Flag(
        *("kl-loss-coef", "0.00", "grpo.kl_loss_coef", _DONE),
        "weight of that KL in the loss; at 0 it is a metric only, and the plan says what it costs",
        ("r1hpc.train.grpo:grpo_loss",),
        (f"{_LOSS}::test_kl_is_a_metric_only_unless_its_loss_coefficient_is_set",),
        ("grpo.kl_loss_coef=-1",),
    ),
    Flag(
        *("kl-loss-type", "low_var_kl", "grpo.kl_loss_type", _DONE),
        "exp(-d) - 1 + d of d = logprob - reference's, cut to [-10, 10]; also k1, k2 and k3",
        ("r1hpc.train.grpo:kl_estimate",),
        (f"{_TERMS}::test_low_var_kl_is_cut_at_10_without_a_gradient_and_stays_finite_where_exp_would_not",),
        ("grpo.kl_loss_type=k4",),
    ),
    Flag(
        *("entropy-coef", "0.00", "grpo.entropy_coef", _DONE),
        "weight of the entropy that is subtracted; at 0 it is reported and nothing is kept for its gradient",
        ("r1hpc.train.grpo:grpo_loss", "r1hpc.train.logprobs:Entropy"),
        (f"{_LOSS}::test_entropy_is_subtracted_and_reported",),
        ("grpo.entropy_coef=-1",),
    ),
    Flag(
        *("eps-clip", "0.2", "grpo.eps_clip", _DONE),
        "lower clip of the ratio",
        ("r1hpc.train.grpo:policy_loss",),
        (f"{_TERMS}::test_clips_only_the_side_that_the_advantage_pushes_to",),
        ("grpo.eps_clip=-0.1",),
    ),
    Flag(
        *("eps-clip-high", "0.28", "grpo.eps_clip_high", _DONE),
        "upper clip of the ratio",
        ("r1hpc.train.grpo:policy_loss",),
        (f"{_TERMS}::test_clips_only_the_side_that_the_advantage_pushes_to",),
        ("grpo.eps_clip_high=-0.1",),
    ),
)

_TRIPLE = ("r1hpc.train.host_adam:HostAdam", "r1hpc.train.optimizer:build_optimizer")
_OPTIMIZER_ARGS = (
    Flag(
        *("optimizer-cpu-offload", "", "optimizer.optimizer_cpu_offload", _DONE),
        "masters and moments in one pinned arena and the Adam step on the host; without it, the same on the device",
        (*_TRIPLE, "r1hpc.train.arena:Arena"),
        (
            "tests/train/test_optimizer.py::test_in_bfloat16_bits_do_not_depend_on_offload_and_every_rank_has_the_rounded_masters",
        ),
    ),
    Flag(
        *("overlap-cpu-optimizer-d2h-h2d", "", "optimizer.overlap_cpu_optimizer_d2h_h2d", _DONE),
        "gradients come and weights go in pieces on a side stream while the step runs; on CPU there is no copy",
        ("r1hpc.train.staging:Staged", "r1hpc.train.host_adam:HostAdam"),
        (f"{_HOST_ADAM}::test_bits_do_not_depend_on_place_overlap_or_size_of_pieces",),
    ),
    Flag(
        *("use-precision-aware-optimizer", "", "optimizer.use_precision_aware_optimizer", _DONE),
        "Megatron's path in which masters belong to the inner optimizer, float32 gradients and states; every optimizer "
        "here runs in it, and offload without it is refused",
        _TRIPLE,
        (_RULES, f"{_HOST_ADAM}::test_bfloat16_parameters_are_the_rounded_masters_of_the_same_float32_run"),
        ("optimizer.use_precision_aware_optimizer=false",),
    ),
)

_SGLANG_ARGS = (
    Flag(
        *("rollout-num-gpus-per-engine", "64", "sglang.rollout_num_gpus_per_engine", _DONE),
        "engines are placed with it, each on whole hosts or a part of one; each process gets it as SGLang's tp_size",
        (
            "r1hpc.actors.engines:EngineGroup",
            "r1hpc.rollout.placement:place_engines",
            _ENGINE_ARGS,
            "r1hpc.plan.engine:make_engine",
        ),
        (f"{_A0}::test_two_engines_cover_two_stages_each", _ENGINE),
        ("sglang.tp_size=64",),
    ),
    Flag(
        *("sglang-mem-fraction-static", "0.5", "sglang.mem_fraction_static", _DONE),
        "SGLang's argument; the plan counts with it",
        (_ENGINE_ARGS, "r1hpc.plan.engine:static_bytes"),
        (f"{_A0}::test_kv_capacity", _ENGINE),
    ),
    Flag(
        *("sglang-enable-ep-moe", "", "sglang.enable_ep_moe", _DONE),
        "an older name, read as sglang.ep_size = rollout_num_gpus_per_engine, with a notice",
        ("r1hpc.config.aliases:ALIASES", _ENGINE_ARGS, "r1hpc.plan.engine_weights:engine_grid"),
        (_OLDER, _ENGINE),
    ),
    Flag(
        *("sglang-enable-dp-attention", "", "sglang.enable_dp_attention", _DONE),
        "SGLang's argument (its name of 0.5.22 where that is installed); samples of a prompt go to one attention rank",
        (_ENGINE_ARGS, "r1hpc.plan.engine_weights:engine_grid"),
        (_RULES, _ENGINE),
        ("sglang.enable_dp_attention=false",),
    ),
    Flag(
        *("sglang-dp-size", "8", "sglang.dp_size", _DONE),
        "attention ranks of an engine",
        (_ENGINE_ARGS, "r1hpc.plan.engine_weights:engine_grid"),
        (_RULES, _ENGINE),
        ("sglang.dp_size=7",),
    ),
    Flag(
        *("sglang-moe-dense-tp-size", "1", "sglang.moe_dense_tp_size", _DONE),
        "dense layers whole on each GPU",
        (_ENGINE_ARGS, "r1hpc.plan.engine_weights:engine_weights"),
        (_RULES, _ENGINE),
        ("sglang.moe_dense_tp_size=2",),
    ),
    Flag(
        *("sglang-enable-dp-lm-head", "", "sglang.enable_dp_lm_head", _DONE),
        "the head whole on each attention rank",
        (_ENGINE_ARGS, "r1hpc.plan.engine_weights:engine_weights"),
        ("tests/plan/test_engine.py::test_the_head_is_spread_over_the_engine_without_dp_lm_head", _ENGINE),
    ),
    Flag(
        *("sglang-disable-radix-cache", "", "sglang.disable_radix_cache", _DONE),
        "SGLang's argument",
        (_ENGINE_ARGS,),
        (_ENGINE,),
    ),
    Flag(
        *("sglang-enable-deepep-moe", "", "sglang.enable_deepep_moe", _DONE),
        "an older name, read as sglang.moe_a2a_backend = deepep, with a notice",
        ("r1hpc.config.aliases:ALIASES", _ENGINE_ARGS),
        (_OLDER, _ENGINE),
    ),
    Flag(
        *("sglang-deepep-mode", "auto", "sglang.deepep_mode", _DONE),
        "SGLang's argument, given with moe_a2a_backend = deepep",
        (_ENGINE_ARGS,),
        (_ENGINE,),
        ("sglang.deepep_mode=slow",),
    ),
    Flag(
        *("sglang-server-concurrency", "1024", "sglang.server_concurrency", _DONE),
        "the client of each engine keeps to so many requests in flight",
        ("r1hpc.actors.engines:EngineGroup", "r1hpc.rollout.client:EngineClient", "r1hpc.plan.batches:make_batches"),
        (
            f"{_A0}::test_client_concurrency_is_one_wave",
            "tests/rollout/test_client.py::test_no_more_than_the_concurrency_are_in_flight",
        ),
    ),
)

_MISC_ARGS = (
    Flag(
        *("attention-dropout", "0.0", "megatron.attention_dropout", _BUILT_IN),
        "attention has no dropout",
        ("r1hpc.model.attention_kernels:kernel_for",),
        (_RULES, f"{_CONTEXT}::test_outputs_and_gradients_are_those_of_a_dense_softmax"),
        ("megatron.attention_dropout=0.1",),
    ),
    Flag(
        *("hidden-dropout", "0.0", "megatron.hidden_dropout", _BUILT_IN),
        "no layer drops anything: a policy with dropout is another one than the engine samples from",
        ("r1hpc.model.config:transformer_config",),
        (_RULES, f"{_MODEL_CONFIG}::test_training_is_without_dropout_and_auxiliary_loss_only"),
        ("megatron.hidden_dropout=0.1",),
    ),
    Flag(
        *("accumulate-allreduce-grads-in-fp32", "", "megatron.accumulate_allreduce_grads_in_fp32", _BUILT_IN),
        "Megatron's data-parallel wrapper sums over micro-batches and ranks in a float32 buffer; a micro-batch's "
        "weight gradient itself is rounded to params_dtype first, for want of the fused kernel",
        ("r1hpc.train.optimizer:wrap",),
        (_RULES, "tests/train/test_optimizer.py::test_gradients_are_float32_and_nothing_scales_them_on_the_way"),
        ("megatron.accumulate_allreduce_grads_in_fp32=false",),
    ),
    Flag(
        *("attention-softmax-in-fp32", "", "megatron.attention_softmax_in_fp32", _BUILT_IN),
        "the kernels compute the softmax and its log-sum-exp in float32 whatever the inputs are",
        ("r1hpc.model.attention_kernels:kernel_for",),
        (_RULES, f"{_CONTEXT}::test_bfloat16_is_computed_in_float32"),
        ("megatron.attention_softmax_in_fp32=false",),
    ),
    Flag(
        *("moe-enable-deepep", "", "megatron.moe_enable_deepep", _DONE),
        "an older name, read as the flex dispatcher with its backend deepep, with a notice; where deep_ep cannot be "
        "imported, alltoall with a notice",
        ("r1hpc.config.aliases:ALIASES", "r1hpc.model.dispatcher:choose_dispatcher"),
        (_OLDER,),
    ),
    Flag(
        *("moe-token-dispatcher-type", "flex", "megatron.moe_token_dispatcher_type", _DONE),
        "Megatron's flex dispatcher, its router in float32; alltoall carries the same tokens without DeepEP",
        ("r1hpc.model.dispatcher:choose_dispatcher",),
        (_RULES,),
        (
            "megatron.moe_token_dispatcher_type=allgather",
            "megatron.moe_router_dtype=fp64",
        ),
    ),
)

_TEXT = (
    Flag(
        *("attention-backend", "flash", "megatron.attention_backend", _NO_EFFECT),
        "commented out in the recipe: attention is r1hpc's own and picks its kernel by the device",
        ("r1hpc.model.attention_kernels:kernel_for",),
    ),
    Flag(
        *("micro-batch-size", "", "perf.micro_batch_size", _NO_EFFECT),
        "micro-batches are packed by tokens, or hold one sample",
        ("r1hpc.train.packing:pack",),
    ),
    Flag(
        *("kl-coef", "0.00", "grpo.kl_coef", _DONE),
        "above 0 it has the reference pass made; it changes no advantage of grpo",
        ("r1hpc.train.grpo:grpo_loss",),
        (_RULES,),
    ),
)
_CONVERSION = (
    Flag(
        *("tensor-model-parallel-size", "1", "convert.tensor_model_parallel_size", _NO_EFFECT),
        "tasks write slices of the global tensors, cut by pipeline stage and expert only",
        ("r1hpc.checkpoint.conversion:make_slices",),
        refused=("convert.tensor_model_parallel_size=2",),
    ),
    Flag(
        *("pipeline-model-parallel-size", "8", "convert.pipeline_model_parallel_size", _DONE),
        "slices by stage",
        ("r1hpc.checkpoint.conversion:make_slices",),
        ("tests/checkpoint/test_layout.py::test_the_recipes_slices_of_r1",),
    ),
    Flag(
        *("expert-tensor-parallel-size", "1", "convert.expert_tensor_parallel_size", _NO_EFFECT),
        "tasks write slices of the global tensors, cut by pipeline stage and expert only",
        ("r1hpc.checkpoint.conversion:make_slices",),
        refused=("convert.expert_tensor_parallel_size=2",),
    ),
    Flag(
        *("expert-model-parallel-size", "4", "convert.expert_model_parallel_size", _DONE),
        "slices by expert",
        ("r1hpc.checkpoint.conversion:make_slices",),
        ("tests/checkpoint/test_layout.py::test_the_recipes_slices_of_r1",),
    ),
    Flag(
        *("decoder-first-pipeline-num-layers", "7", "convert.decoder_first_pipeline_num_layers", _DONE),
        "layers of the first slice",
        ("r1hpc.checkpoint.conversion:make_slices",),
        ("tests/checkpoint/test_layout.py::test_the_recipes_slices_of_r1",),
    ),
    Flag(
        *("decoder-last-pipeline-num-layers", "6", "convert.decoder_last_pipeline_num_layers", _DONE),
        "layers of the last slice",
        ("r1hpc.checkpoint.conversion:make_slices",),
        ("tests/checkpoint/test_layout.py::test_the_recipes_slices_of_r1",),
    ),
)

ARRAYS: Final[Mapping[str, tuple[Flag, ...]]] = {
    "CKPT_ARGS": _CKPT_ARGS,
    "ROLLOUT_ARGS": _ROLLOUT_ARGS,
    "PERF_ARGS": _PERF_ARGS,
    "GRPO_ARGS": _GRPO_ARGS,
    "OPTIMIZER_ARGS": _OPTIMIZER_ARGS,
    "SGLANG_ARGS": _SGLANG_ARGS,
    "MISC_ARGS": _MISC_ARGS,
}
"""The flags of each array that the recipe prints, in its order."""

ELSEWHERE: Final[Mapping[str, tuple[Flag, ...]]] = {
    "Named in the text": _TEXT,
    "MODEL_PARALLEL_ARGS of the conversion": _CONVERSION,
}
"""Flags that the recipe names outside those arrays."""
