"""What hf_freeze uses of transformers that transformers calls private."""

from hf_freeze.private.name import PrivateName

_TRAINER = "transformers.trainer:Trainer"
_WINDOW = "the mean loss of a resumed run goes on where it was"

NAMES = (
    PrivateName(_TRAINER, "_evaluate", "override", "a threshold is tuned in training's own evaluations"),
    PrivateName(_TRAINER, "_maybe_log_save_evaluate", "override", "evaluating leaves the random states alone"),
    PrivateName(_TRAINER, "_load_from_checkpoint", "override", "resuming loads thresholds and base weights"),
    PrivateName(_TRAINER, "_load_best_model", "override", "the threshold of the best checkpoint is loaded with it"),
    PrivateName(_TRAINER, "_load_optimizer_and_scheduler", "override", "ignore_plan_change begins a new optimizer"),
    PrivateName(_TRAINER, "_load_callback_state", "override", "a resumed run keeps the callback of its plan"),
    PrivateName(_TRAINER, "_load_rng_state", "attribute", "an evaluation that was missed draws what it would have"),
    PrivateName(_TRAINER, "_determine_best_metric", "attribute", "an evaluation that was missed counts once"),
    PrivateName(_TRAINER, "_save_checkpoint", "override", "frozen weights are proved unchanged before each save"),
    PrivateName(_TRAINER, "_save_rng_state", "override", "a checkpoint is whole when every process has saved"),
    PrivateName(_TRAINER, "_save", "override", "save_trained_only leaves out what is frozen"),
    PrivateName(_TRAINER, "_push_from_checkpoint", "override", "what trained is pushed to the hub"),
    PrivateName(_TRAINER, "_get_num_items_in_batch", "override", "the loss of an evaluation is a mean"),
    PrivateName(_TRAINER, "_prepare_inputs", "attribute", "batches reach the device as in a step"),
    PrivateName(_TRAINER, "_get_collator_with_removed_columns", "attribute", "debug_sample collates as in a step"),
    PrivateName(_TRAINER, "_get_output_dir", "attribute", "the best weights of a stage are saved in the checkpoint"),
    PrivateName("transformers:TrainingArguments", "fsdp_plugin_args", "set", "FSDP1 that mixes what trains is refused"),
    PrivateName(_TRAINER, "_globalstep_last_logged", "set", _WINDOW),
    PrivateName(_TRAINER, "_total_loss_scalar", "set", _WINDOW),
    PrivateName(_TRAINER, "current_gradient_accumulation_steps", "set", "micro-batches are weighted by their labels"),
    PrivateName(
        "transformers.modeling_utils:PreTrainedModel",
        "_from_config",
        "attribute",
        "preview builds models",
    ),
    PrivateName(
        "transformers:AutoModelForSequenceClassification",
        "_model_mapping",
        "attribute",
        "the class of a model is found",
    ),
    PrivateName(
        "transformers:Pipeline", "_sanitize_parameters", "override", "BinaryClassificationPipeline reads its arguments"
    ),
    PrivateName(
        "transformers:TextClassificationPipeline", "_postprocess_params", "guarded", "arguments given when it was built"
    ),
    PrivateName(
        "transformers:PreTrainedModel", "_gradient_checkpointing_func", "guarded", "only what trains recomputes"
    ),
    PrivateName(
        "transformers:PreTrainedConfig", "_name_or_path", "guarded", "the origin of a model is left out of keys"
    ),
    PrivateName("transformers:PreTrainedConfig", "_commit_hash", "guarded", "the base of a checkpoint is named"),
    PrivateName(
        "transformers:PreTrainedModel", "_is_hf_initialized", "guarded", "what the base does not hold is saved"
    ),
    PrivateName("transformers:PreTrainedConfig", "_attn_implementation", "guarded", "stored features are told apart"),
    PrivateName(_TRAINER, "_clip_grad_norm", "guarded", "clipping a small head takes no walk through the whole model"),
    PrivateName(_TRAINER, "loss_is_scaled_for_ga", "guarded", "a Trainer that scales its loss itself is left alone"),
)
