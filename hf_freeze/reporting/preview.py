"""What a plan costs and changes, before anything is computed: stage by stage, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.plan.stages import FreezePlan
from hf_freeze.reporting.optimizer_state import state_bytes
from hf_freeze.reporting.preview_result import GroupPreview, Preview, StagePreview
from hf_freeze.reporting.rates import RateSchedule, rate_schedule
from hf_freeze.reporting.stand_in import ModelSource, longest_text, stand_in, without_weights
from hf_freeze.reporting.trace import ModelTracer, StepTrace
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.freezing import plan_as_it_is
from hf_freeze.training.groups import GroupSpec, group_specs

_TOKENS = 128


def preview(
    model: ModelSource,
    args: TrainingArguments,
    *,
    plan: FreezePlan | None = None,
    batch_size: int | None = None,
    tokens: int | None = None,
    rows: int | None = None,
    batch: Mapping[str, Any] | None = None,
    auto_class: str | None = None,
) -> Preview:
    """Preview every stage of a plan: parameters, learning rates, memory, traffic and compute of each group.

    `model` is a model, a configuration, or the name or folder of one; the latter are built without weights, so that
    the largest ones take seconds and no memory (`auto_class` names their class, such as "AutoModelForCausalLM"). The
    plan is `plan=`, else what `args` declare, else what requires a gradient now. `rows` of training data turn epochs
    into steps. Nothing of the model changes, and nothing is trained.

    - Groups are those that `FreezeTrainer` builds, and so are learning rate and weight decay.
    - Optimizer state: the optimizer of `args` makes one step on the meta device. State outlives its group's training.
    - Gradients: one value per trainable parameter, of its type. DDP sends each once per optimizer step (an all-reduce
      moves up to twice as much over the wire), and the buffers once.
    - Activations: all that is alive between forward and backward, weights aside: what autograd keeps, and the output.
      Temporary memory within an operation, or during the backward pass, is not in it. Attention is that of the CPU,
      which keeps the attention weights where they have dropout; a device that fuses it keeps less.
    - Cost: the operations of matrix products, attention and convolutions in one forward and one backward pass, as a
      share of what they are when everything trains. The forward pass runs whole; the backward pass goes down to the
      lowest parameter that trains, and computes the gradients of weights that train alone. Other operations, reading
      and writing memory, and the optimizer's step are not counted; nor is what `cache_frozen` saves.

    The last two come from one real pass of autograd per stage over `batch`, or a batch of `batch_size` (that of `args`)
    times `tokens` (128), without values. A model whose computation depends on values has neither, and a remark.

    >>> from transformers import BertConfig
    >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> seen = preview(config, TrainingArguments("out"), plan=FreezePlan(trainable="head"))
    >>> seen.stages[0].parameters, seen.stages[0].optimizer_bytes, round(seen.stages[0].cost, 2)
    (130, 1048, 0.33)
    """
    built = unwrap(without_weights(model, auto_class))
    meta = stand_in(built, "meta")
    resolved = (_one_plan(plan, args) or plan_as_it_is(built)).resolve(built)
    specs = _specs(resolved, args, meta)
    count = args.per_device_train_batch_size if batch_size is None else batch_size
    length = min(_TOKENS, longest_text(built) or _TOKENS) if tokens is None else tokens
    remarks: list[str] = []
    facts = _Facts(
        resolved=resolved,
        specs=specs,
        gradients={name: p.numel() * p.element_size() for name, p in meta.named_parameters()},
        buffers=_buffer_bytes(meta, args),
        optimizer=_optimizer_bytes(specs, meta, args, remarks),
        traces=_traces(built, args, resolved, remarks, batch=batch, rows=count, tokens=length),
        schedule=rate_schedule(args, resolved, specs, rows=rows),
    )
    return Preview(
        model=type(built).__name__,
        parameters=sum(resolved.sizes.values()),
        weight_bytes=sum(facts.gradients.values()),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        batch="the batch given" if batch is not None else f"{count} rows of {length} tokens",
        stages=tuple(map(facts.stage, range(len(resolved.stages)))),
        schedule=facts.schedule,
        remarks=tuple(remarks),
    )


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the rows of the table are put together from. `gradients` holds bytes by parameter, `optimizer` by group."""

    resolved: ResolvedPlan
    specs: Sequence[GroupSpec]
    gradients: Mapping[str, int]
    buffers: int
    optimizer: Mapping[str, int] | None
    traces: Mapping[frozenset[str], StepTrace]
    schedule: RateSchedule | None

    def stage(self, index: int) -> StagePreview:
        names = self.resolved.stages[index]
        begun = self.resolved.stages[: index + 1]
        held = [spec for spec in self.specs if any(spec.parameters[0] in stage for stage in begun)]
        groups = tuple(self._group(spec, trains=spec.parameters[0] in names) for spec in held)
        trace = self.traces.get(names)
        begins = self.schedule.begins if self.schedule else ()
        return StagePreview(
            index=index,
            starts=self.resolved.timed[index - 1].when if index else "start",
            step=begins[index] if index < len(begins) else None,
            groups=groups,
            activation_bytes=trace.kept_bytes if trace else None,
            ddp_bytes=sum(group.gradient_bytes for group in groups) + self.buffers,
            cost=trace.flops / max(self.traces[_EVERYTHING].flops, 1) if trace else None,
        )

    def _group(self, spec: GroupSpec, *, trains: bool) -> GroupPreview:
        return GroupPreview(
            name=spec.name,
            trains=trains,
            parameters=sum(self.resolved.sizes[name] for name in spec.parameters),
            learning_rate=spec.options["lr"] if trains else 0.0,
            weight_decay=spec.options["weight_decay"] if trains else 0.0,
            optimizer_bytes=self.optimizer[spec.name] if self.optimizer else None,
            gradient_bytes=sum(self.gradients[name] for name in spec.parameters) if trains else 0,
        )


def _one_plan(plan: FreezePlan | None, args: TrainingArguments) -> FreezePlan | None:
    declared = args.freeze_plan() if isinstance(args, FreezeArguments) else None
    if plan is not None and declared is not None:
        raise PlanError(f"Two plans: plan={plan.to_dict()} and, in the arguments, {declared.to_dict()}. Keep one.")
    return plan or declared


def _specs(resolved: ResolvedPlan, args: TrainingArguments, model: nn.Module) -> list[GroupSpec]:
    extras = args if isinstance(args, FreezeArguments) else FreezeArguments()
    return group_specs(
        resolved,
        args,
        decayed=Trainer.get_decay_parameter_names(None, model),  # type: ignore[arg-type] # reads nothing of self
        group_lrs=extras.rates_by_selection,
        layer_lr_decay=extras.layer_lr_decay,
    )


def _optimizer_bytes(
    specs: Sequence[GroupSpec], meta: nn.Module, args: TrainingArguments, remarks: list[str]
) -> dict[str, int] | None:
    try:
        return state_bytes(specs, meta, args)
    except Exception as error:  # an optimizer may raise anything
        remarks.append(f"Optimizer state unknown: {args.optim} makes no step without values ({_short(error)}).")
        return None


_EVERYTHING: frozenset[str] = frozenset()  # the key of full fine-tuning among the traces: no stage trains nothing


def _traces(
    model: nn.Module, args: TrainingArguments, resolved: ResolvedPlan, remarks: list[str], **batch: Any
) -> dict[frozenset[str], StepTrace]:
    """By what trains, a step of it; under no names, one of full fine-tuning. {} and a remark where none can be had."""
    words = resolved.words
    full = frozenset(words.parts) - words.not_floating - words.inactive
    try:
        tracer = ModelTracer(model, args, **batch)
        traces = {names: tracer.trace(names) for names in {full, *resolved.stages}}
    except Exception as error:  # a model may raise anything
        remarks.append(
            f"Activations and cost unknown: {type(model).__name__} cannot be run without values ({_short(error)}). "
            "If it takes other inputs, give a batch=."
        )
        return {}
    return {**traces, _EVERYTHING: traces[full]}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _buffer_bytes(model: nn.Module, args: TrainingArguments) -> int:
    """What DDP broadcasts beside gradients, so that replicas have the same buffers."""
    if args.ddp_broadcast_buffers is False:
        return 0
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
