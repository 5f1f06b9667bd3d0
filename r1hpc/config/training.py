"""The science: checkpoints, rollout, evaluation, parallelism, GRPO, optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from r1hpc.config.base import ImportPath, Section, SlicedPath
from r1hpc.config.quantities import Integer, NonNegativeFloat, NonNegativeInt, Number, PositiveFloat, PositiveInt, Seed

RewardType = Literal["deepscaler", "math_verify", "exact", "boxed_deepscaler", "boxed_math_verify", "boxed_exact"]


class CkptConfig(Section):
    """Where weights come from and where the run commits itself."""

    hf_checkpoint: str
    """Hugging Face directory that SGLang starts from: tokenizer, config.json, and the `quantization_config` that
    decides the quantisation of every weight sync. --hf-checkpoint"""
    hf_config: str | None = None
    """A config.json to plan with where `hf_checkpoint` is not on disk yet; when both exist they must agree."""
    bf16_checkpoint: str | None = None
    """Where the cast stage writes the bf16 Hugging Face checkpoint; null lets convert dequantise on the fly."""
    ref_load: str | None = None
    """torch_dist directory of the frozen reference, written by the convert stage. --ref-load"""
    load: str | None = None
    """Where the first attempt may start: a directory with commits of another run, or with a tracker. A run that has
    commits of its own in `save` goes on from those. --load"""
    save: str | None = None
    """Directory that commits go to; null means `checkpoints` in the run directory. --save"""
    save_interval: PositiveInt | None = None
    """Iterations between commits, besides those that the clock asks for. --save-interval"""
    save_minutes: PositiveInt | None = None
    """Minutes between commits; null takes the plan's advice sqrt(2 * save time * mean time between interruptions)."""
    keep: PositiveInt = 2
    """Commits kept; older ones are removed after a newer one is valid."""
    fresh: bool = False
    """Start from `ref_load` although `load` holds files without a commit; refused otherwise."""


class RolloutConfig(Section):
    """Prompts, sampling, filtering and rewards of one rollout."""

    prompt_data: SlicedPath
    """Prompt file, one JSON object a line or parquet; a slice may follow: `path@[a:b]`. --prompt-data"""
    input_key: str = "input"
    """Key of the prompt. --input-key"""
    label_key: str | None = None
    """Key of the label. --label-key"""
    apply_chat_template: bool = False
    """Wrap the prompt with the tokenizer's chat template. --apply-chat-template"""
    rollout_shuffle: bool = False
    """Permute the prompts each epoch, a pure function of (rollout_seed, epoch). --rollout-shuffle"""
    rollout_seed: Seed = 42
    """Seed of the order of the prompts. --rollout-seed"""
    rm_type: RewardType | None = None
    """Reward; boxed_ takes the content of the last \\boxed{} for the response first. --rm-type"""
    custom_rm_path: ImportPath | None = None
    """Import path of a reward function. --custom-rm-path"""
    group_rm: bool = False
    """Reward whole groups at once. --group-rm"""
    num_rollout: PositiveInt
    """Number of the last iteration plus one, absolute: a resumed run goes on to the same end. --num-rollout"""
    rollout_batch_size: PositiveInt
    """Prompts kept per rollout. --rollout-batch-size"""
    n_samples_per_prompt: PositiveInt = 1
    """Samples per prompt: one group. --n-samples-per-prompt"""
    rollout_max_prompt_len: PositiveInt | None = None
    """Tokens; longer prompts are counted and dropped at load. --rollout-max-prompt-len"""
    rollout_max_response_len: PositiveInt
    """Tokens generated at most per sample. --rollout-max-response-len"""
    rollout_temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Sampling temperature; every training log-prob divides the logits by it too. --rollout-temperature"""
    rollout_top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the probability kept; 1 is off. --rollout-top-p"""
    rollout_top_k: Integer = -1
    """-1 is off. --rollout-top-k"""
    over_sampling_batch_size: PositiveInt | None = None
    """Prompts submitted in one wave, at least rollout_batch_size; null means the same. --over-sampling-batch-size"""
    dynamic_sampling_filter_path: ImportPath | None = None
    """Import path of the group filter. --dynamic-sampling-filter-path"""
    recycle: Literal["none", "prompts", "tokens"] = "prompts"
    """What becomes of aborted and surplus groups: dropped, their prompts queued first next time, or continued."""
    max_prompt_drops: NonNegativeInt = 3
    """How often the responses to one prompt are thrown away and the prompt queued again; then it is given up."""
    num_steps_per_rollout: PositiveInt | None = None
    """Optimizer steps per rollout; sets global_batch_size. --num-steps-per-rollout"""
    global_batch_size: PositiveInt | None = None
    """Samples per optimizer step; with num_steps_per_rollout given too, both must agree. --global-batch-size"""
    balance_data: bool = False
    """Balance estimated FLOPs over data-parallel ranks. --balance-data"""

    @property
    def samples_per_rollout(self) -> int:
        """rollout_batch_size * n_samples_per_prompt."""
        return self.rollout_batch_size * self.n_samples_per_prompt

    @property
    def wave_prompts(self) -> int:
        """Prompts submitted in one wave of over-sampling."""
        return self.over_sampling_batch_size or self.rollout_batch_size


class EvalConfig(Section):
    """Held-out evaluation; off unless eval_interval is set."""

    eval_interval: PositiveInt | None = None
    """Iterations between evaluations; null is off. --eval-interval"""
    eval_prompt_data: dict[str, SlicedPath] = Field(default_factory=dict)
    """Name to path of each evaluation set. --eval-prompt-data NAME PATH ..."""
    n_samples_per_eval_prompt: PositiveInt = 1
    """Samples per prompt of an evaluation. --n-samples-per-eval-prompt"""
    eval_max_response_len: PositiveInt | None = None
    """Tokens; null means rollout_max_response_len. --eval-max-response-len"""
    eval_temperature: NonNegativeFloat | None = None
    """null means rollout_temperature. --eval-temperature"""
    eval_top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """null means rollout_top_p. --eval-top-p"""


class PerfConfig(Section):
    """Megatron's parallel layout, recomputation and the token budget of a micro-batch."""

    tensor_model_parallel_size: PositiveInt = 1
    """Ranks that share each weight matrix; best within a node. --tensor-model-parallel-size"""
    sequence_parallel: bool = False
    """Also share activations between these ranks along the sequence. --sequence-parallel"""
    pipeline_model_parallel_size: PositiveInt = 1
    """Stages that the layers are dealt to. --pipeline-model-parallel-size"""
    context_parallel_size: PositiveInt = 1
    """Ranks that share each sequence. --context-parallel-size"""
    expert_model_parallel_size: PositiveInt = 1
    """Ranks that the experts of a layer are dealt to. --expert-model-parallel-size"""
    expert_tensor_parallel_size: PositiveInt = 1
    """Ranks that share each expert matrix. --expert-tensor-parallel-size"""
    decoder_first_pipeline_num_layers: PositiveInt | None = None
    """Layers of the first stage; null divides evenly. --decoder-first-pipeline-num-layers"""
    decoder_last_pipeline_num_layers: PositiveInt | None = None
    """Layers of the last stage; null divides evenly. --decoder-last-pipeline-num-layers"""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Activations computed again in the backward pass instead of kept. --recompute-granularity"""
    recompute_method: Literal["uniform", "block"] | None = None
    """How layers are grouped for full recomputation. --recompute-method"""
    recompute_num_layers: PositiveInt | None = None
    """Layers of such a group. --recompute-num-layers"""
    use_dynamic_batch_size: bool = False
    """Pack samples into micro-batches by tokens. --use-dynamic-batch-size"""
    max_tokens_per_gpu: PositiveInt | None = None
    """Raw tokens per GPU in a micro-batch; context-parallel ranks share CP times as many. --max-tokens-per-gpu"""
    log_probs_chunk_size: PositiveInt = 1024
    """Tokens whose logits exist at once while log-probs are computed. --log-probs-chunk-size"""
    process_groups: Literal["auto", "keep", "rebuild"] = "auto"
    """What becomes of the process groups, with NCCL's memory, while the trainer sleeps: kept, or destroyed and rebuilt
    on waking; auto rebuilds above 16 GPUs."""


class GrpoConfig(Section):
    """The advantage, the surrogate and its regularisers."""

    advantage_estimator: Literal["grpo"] = "grpo"
    """Rewards minus the mean of their group, over its std. --advantage-estimator"""
    use_kl_loss: bool = False
    """Load the reference and compute its log-probs; with coefficient 0 it is a metric only. --use-kl-loss"""
    kl_loss_coef: NonNegativeFloat = 0.0
    """Weight of the KL term of the loss. --kl-loss-coef"""
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    """Estimator of KL: low_var_kl is k3 cut to [-10, 10]. --kl-loss-type"""
    kl_coef: NonNegativeFloat = 0.0
    """KL in the reward; not together with kl_loss_coef. --kl-coef"""
    ref_logprob_interval: PositiveInt = 1
    """Rollouts between reference passes; above 1 only where both coefficients are 0."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy that is subtracted from the loss. --entropy-coef"""
    eps_clip: NonNegativeFloat = 0.2
    """Lower clip of the ratio: 1 - eps_clip. --eps-clip"""
    eps_clip_high: NonNegativeFloat | None = None
    """Upper clip of the ratio: 1 + eps_clip_high; null means eps_clip. --eps-clip-high"""
    eps_clip_c: Annotated[Number, Field(gt=1)] | None = None
    """Dual clip for negative advantages. --eps-clip-c"""
    disable_grpo_std_normalization: bool = False
    """Centre the rewards without dividing by their std, as Dr. GRPO does.
    --disable-grpo-std-normalization"""
    disable_rewards_normalization: bool = False
    """Take the rewards as the advantages. --disable-rewards-normalization"""
    calculate_per_token_loss: bool = False
    """Average over the step's tokens rather than over its samples. --calculate-per-token-loss"""
    use_tis: bool = False
    """Truncated importance sampling of rollout against training log-probs. --use-tis"""
    tis_clip: PositiveFloat = 2.0
    """Upper bound of its importance weights. --tis-clip"""
    use_rollout_logprobs: bool = False
    """Take the engine's log-probs as the old ones. --use-rollout-logprobs"""


class OptimizerConfig(Section):
    """Adam and where it lives."""

    optimizer: Literal["adam"] = "adam"
    """The update rule. --optimizer"""
    lr: NonNegativeFloat = 1e-6
    """Peak learning rate. --lr"""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up. --lr-decay-style"""
    lr_warmup_iters: NonNegativeInt = 0
    """Optimizer steps. --lr-warmup-iters"""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate that the decay ends at. --min-lr"""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled from the gradient. --weight-decay"""
    adam_beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment. --adam-beta1"""
    adam_beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.98
    """Decay of the second moment. --adam-beta2"""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the second moment. --adam-eps"""
    clip_grad: NonNegativeFloat = 1.0
    """Global norm; 0 is off. --clip-grad"""
    optimizer_cpu_offload: bool = False
    """Masters, moments and the Adam step in host memory. --optimizer-cpu-offload"""
    overlap_cpu_optimizer_d2h_h2d: bool = False
    """Copy gradients and weights while the step runs. --overlap-cpu-optimizer-d2h-h2d"""
    use_precision_aware_optimizer: bool = False
    """Required with offload: without it the masters keep construction-time values. --use-precision-aware-optimizer"""
