"""The evaluation that a checkpoint lacks: at the end of an epoch, `save_strategy="steps"` saves before it.

The interrupted run evaluated there, and plateaus, the best metric and a scheduler may depend on the result.
"""

from transformers import TrainerState, TrainingArguments

from hf_freeze.main_process import MainProcessLogger
from hf_freeze.no_trace import random_states_kept
from hf_freeze.training.train_calls import train_call

logger = MainProcessLogger(__name__)


def is_missed(args: TrainingArguments, state: TrainerState, steps_per_epoch: int | None) -> bool:
    """Tell whether the step that a run resumes at ends an epoch whose evaluation the log does not have."""
    if args.eval_strategy != "epoch" or not steps_per_epoch or not state.global_step:
        return False
    ends_epoch = state.global_step % steps_per_epoch == 0 and (state.epoch or 0) >= args.eval_delay
    last = [entry for entry in state.log_history if entry.get("step") == state.global_step]
    return ends_epoch and not any(name.startswith("eval_") for entry in last for name in entry)


def make_up() -> None:
    """Evaluate as the Trainer on the stack does at the end of an epoch."""
    call = train_call()
    if call is None:
        logger.warning(
            "The checkpoint was saved before the evaluation of its epoch. It cannot be made up for, because no "
            "running Trainer was found: a plateau that depends on it will end later than in the interrupted run."
        )
        return
    trainer, trial = call["self"], call.get("trial")
    with random_states_kept():
        # A data set, a model or a metric may draw random numbers; the Trainer loads these only after the epoch begins.
        trainer._load_rng_state(call.get("resume_from_checkpoint"))
        metrics = trainer._evaluate(trial, call.get("ignore_keys_for_eval"))
    trainer._determine_best_metric(metrics=metrics, trial=trial)
