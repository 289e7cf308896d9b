"""What a plan costs and changes, before anything is computed: stage by stage, group by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.given import PlanLike
from hf_freeze.plan.rotation import Rotation
from hf_freeze.reporting.preview.named_model import ModelSource, without_weights
from hf_freeze.reporting.preview.optimizer_state import HeldState, held_state
from hf_freeze.reporting.preview.preview_inputs import (
    check_batch,
    check_counts,
    check_model_and_arguments,
    check_tokens,
    one_plan,
)
from hf_freeze.reporting.preview.preview_result import GroupPreview, Preview, StagePreview
from hf_freeze.reporting.preview.rates import RateSchedule, rate_schedule
from hf_freeze.reporting.preview.stand_in import longest_text
from hf_freeze.reporting.preview.trace import ModelTracer, StepTrace
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.rows import tensors_of
from hf_freeze.tensor_parts import bytes_of
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.bound_plan import BoundPlan, bind
from hf_freeze.training.freezing import plan_as_it_is
from hf_freeze.training.groups import GroupSpec, group_specs
from hf_freeze.training.setup import check_setup

_TOKENS = 128


def preview(
    model: ModelSource,
    args: TrainingArguments,
    *,
    plan: PlanLike | None = None,
    batch_size: int | None = None,
    tokens: int | None = None,
    rows: int | None = None,
    batch: Mapping[str, Any] | None = None,
    auto_class: str | None = None,
) -> Preview:
    """Preview every stage of a plan: parameters, learning rates, memory, traffic and compute of each group.

    Nothing of the model changes, and nothing is trained.

    - Groups are those that `FreezeTrainer` builds, and so are learning rate and weight decay.
    - Optimizer state: the optimizer of `args` makes one step on the meta device. What is held in one place for several
      parameters, as the code tables of bitsandbytes are, counts once, with the first group that has it. State outlives
      its group's training, but where a stage says forget=True. A rotation is shown by one period, of those that train
      most.
    - Gradients: one value per trainable parameter, of its type; for all of a matrix of which some rows train. DDP sends
      each once per optimizer step (an all-reduce moves up to twice as much over the wire), and the buffers once.
    - Activations: all that is alive between forward and backward, weights aside: what autograd keeps, and the output.
      Temporary memory within an operation, or during the backward pass, is not in it. Attention is that of the CPU,
      which keeps the attention weights where they have dropout; a device that fuses it keeps less.
    - Cost: the operations of matrix products, attention and convolutions in one forward and one backward pass, as a
      share of what they are when everything trains. The forward pass runs whole; the backward pass goes down to the
      lowest parameter that trains, and computes the gradients of weights that train alone. Other operations, reading
      and writing memory, and the optimizer's step are not counted; nor is what `cache_frozen` saves.

    The last two come from one real pass of autograd per stage over `batch`, or a batch of `batch_size` (that of `args`)
    times `tokens` (128), without values. A model whose computation depends on values has neither, and a remark. What
    gets no gradient in a `batch` that is given has none, and no optimizer state; for a made-up one a remark says so.

    Args:
        model: A model, a configuration, or the name or folder of one; the latter are built without weights, so that the
            largest ones take seconds and no memory.
        args: Those of the run.
        plan: A plan, its mapping, a recipe such as "gradual", or a file. By default what `args` declare, else what
            requires a gradient now.
        batch_size: Rows of the batch that is made up.
        tokens: Tokens of each of its rows.
        rows: Rows of training data, so that epochs become steps.
        batch: Inputs as the data collator makes them, in place of a batch that is made up.
        auto_class: The class of transformers that builds a configuration, such as "AutoModelForCausalLM".

    Returns:
        The stages with their groups. `print(preview(...))` is a table.

    Raises:
        FreezeError: For a model, arguments, counts or a batch of the wrong type or out of range.
        SelectionError: For a plan that names what the model does not have.
        PlanError: For a plan that does not fit, such as one that counts epochs where `rows` are not given.
        UnsupportedSetupError: For what `FreezeTrainer` refuses.

    >>> from transformers import BertConfig
    >>> config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    >>> seen = preview(config, TrainingArguments("out"), plan="linear-probe")
    >>> seen.stages[0].parameters, seen.stages[0].optimizer_bytes, round(seen.stages[0].cost, 2)
    (130, 1048, 0.33)
    """
    check_model_and_arguments(model, args)
    check_counts(batch_size=batch_size, tokens=tokens, rows=rows)
    plan = one_plan(plan, args)
    built = unwrap(without_weights(model, auto_class))
    check_tokens(tokens, built)
    check_batch(batch, built)
    rates = args.rates_by_selection if isinstance(args, FreezeArguments) else ()
    bound = bind(plan or plan_as_it_is(built), built, rates=rates)
    check_setup(args, bound)
    specs = _specs(bound.resolved, args, built)
    schedule = rate_schedule(args, bound.resolved, specs, rows=rows)
    count = args.per_device_train_batch_size if batch_size is None else batch_size
    length = min(_TOKENS, longest_text(built) or _TOKENS) if tokens is None else tokens
    remarks: list[str] = []
    facts = _facts(bound, args, specs, schedule, remarks, batch=batch, rows=count, tokens=length)
    return Preview(
        model=type(built).__name__,
        parameters=sum(bound.resolved.sizes.values()),
        weight_bytes=sum(facts.gradients.values()),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        batch="the batch given" if batch is not None else f"{count} rows of {length} tokens",
        stages=tuple(map(facts.stage, range(len(bound.resolved.stages)))),
        schedule=schedule,
        remarks=tuple(remarks),
    )


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the rows of the table are put together from, by parameter; `idle` are those without a gradient, by stage."""

    resolved: ResolvedPlan
    shown: Sequence[frozenset[str]]
    specs: Sequence[GroupSpec]
    gradients: Mapping[str, int]
    idle: Mapping[frozenset[str], frozenset[str]]
    buffers: int
    optimizer: Mapping[str, HeldState] | None
    traces: Mapping[frozenset[str], StepTrace]
    schedule: RateSchedule | None

    def stage(self, index: int) -> StagePreview:
        names = self.shown[index]
        begun = frozenset().union(*self.shown[: index + 1])
        stepped = frozenset[str]()
        for before in range(index + 1):
            stepped = (stepped - self.resolved.forgotten(before)) | self._with_gradient(self.shown[before])
        states = self._states(stepped)
        all_groups = [self._group(spec, index, state) for spec, state in zip(self.specs, states, strict=True)]
        held = [spec.parameters[0] in begun for spec in self.specs]
        trace = self.traces.get(names)
        begins = self.schedule.begins if self.schedule else ()
        return StagePreview(
            index=index,
            starts=self.resolved.timed[index - 1].when if index else "start",
            step=begins[index] if index < len(begins) else None,
            groups=tuple(
                g for g, begins_by_now in zip(all_groups, held, strict=True) if begins_by_now or g.optimizer_bytes
            ),
            activation_bytes=trace.kept_bytes if trace else None,
            # The reducer sends zeros for what trains without a gradient.
            ddp_bytes=sum(self._allocated(names).values()) + self.buffers,
            cost=trace.flops / max(self.traces[_EVERYTHING].flops, 1) if trace else None,
        )

    def _with_gradient(self, stage: frozenset[str]) -> frozenset[str]:
        return stage - self.idle.get(stage, frozenset())

    def _group(self, spec: GroupSpec, stage: int, state: int | None) -> GroupPreview:
        names = self.shown[stage]
        trains = spec.parameters[0] in names
        return GroupPreview(
            name=spec.name,
            trains=trains,
            parameters=sum(self.resolved.sizes[name] for name in spec.parameters),
            learning_rate=spec.options["lr"] * self.resolved.lr_factors[stage] if trains else 0.0,
            weight_decay=spec.options["weight_decay"] if trains else 0.0,
            optimizer_bytes=state,
            gradient_bytes=sum(self._allocated(self._with_gradient(names)).get(name, 0) for name in spec.parameters),
        )

    def _allocated(self, names: frozenset[str]) -> dict[str, int]:
        """Return the bytes of each gradient; of a matrix it is whole, and counts with the first rows that train."""
        found = {name: self.gradients[name] for name in names}
        for cut in self.resolved.model_map.cuts.values():
            trained = [rows.name for rows in cut if rows.name in names]
            if trained:
                found[trained[0]] += sum(self.gradients[rows.name] for rows in cut if rows.name not in names)
        return found

    def _states(self, stepped: frozenset[str]) -> list[int | None]:
        """Return the bytes of state of each group; memory that several share counts with the first of them."""
        if self.optimizer is None:
            return [None for _ in self.specs]
        found: list[int | None] = []
        counted: set[object] = set()
        for spec in self.specs:
            pieces: dict[object, int] = {}
            for name in spec.parameters:
                pieces |= self.optimizer[name].stepped if name in stepped else self.optimizer[name].built
            found.append(sum(size for piece, size in pieces.items() if piece not in counted))
            counted |= pieces.keys()
        return found


def _facts(
    bound: BoundPlan,
    args: TrainingArguments,
    specs: Sequence[GroupSpec],
    schedule: RateSchedule | None,
    remarks: list[str],
    **batch: Any,
) -> _Facts:
    """Let the optimizer step and the model run, without values, and note in `remarks` what cannot be known."""
    resolved, is_given = bound.resolved, batch["batch"] is not None
    if resolved.rotation is not None:
        remarks.append(_about_rotation(resolved.rotation, resolved.sizes))
    optimizer = _optimizer_state(specs, bound.model, args, remarks)
    period = resolved.rotation.largest(resolved.sizes) if resolved.rotation else 0
    shown = tuple(resolved.trains(stage, period) for stage in range(len(resolved.stages)))
    traces = _traces(bound.model, args, resolved, shown, remarks, **batch)
    idle = {names: _parts_of(traces[names].without_gradient, names) for names in shown} if traces else {}
    if named := sorted(frozenset().union(*idle.values())):
        remarks.append(_about_idle(named, of_given_batch=is_given))
    return _Facts(
        resolved=resolved,
        shown=shown,
        specs=specs,
        gradients={name: bytes_of(p) for name, p in bound.parameters.items()},
        idle=idle if is_given else {},
        buffers=_buffer_bytes(bound.model, args),
        optimizer=optimizer,
        traces=traces,
        schedule=schedule,
    )


def _about_rotation(rotation: Rotation, sizes: Mapping[str, int]) -> str:
    shown = rotation.layers_of(rotation.names(rotation.largest(sizes)))
    return f"{rotation.schedule} Shown: a turn of {shown}, which trains the most."


def _parts_of(tensors: frozenset[str], names: frozenset[str]) -> frozenset[str]:
    """Return those of the names that are these tensors, or rows of them."""
    return frozenset(name for name in names if not tensors.isdisjoint(tensors_of([name])))


def _about_idle(names: Sequence[str], *, of_given_batch: bool) -> str:
    first = f"{names[0]!r} and {len(names) - 1} other tensors" if len(names) > 1 else repr(names[0])
    if of_given_batch:
        return (
            f"No gradient reaches {first} in this batch: they take no gradient and no optimizer state; DDP sends them."
        )
    return f"No gradient reaches {first} in a made-up batch. They are counted all the same; give a real one as batch=."


def _specs(resolved: ResolvedPlan, args: TrainingArguments, model: nn.Module) -> list[GroupSpec]:
    extras = args if isinstance(args, FreezeArguments) else FreezeArguments()
    return group_specs(
        resolved,
        args,
        decayed=Trainer.get_decay_parameter_names(None, model),  # type: ignore[arg-type] # reads nothing of self
        group_lrs=extras.rates_by_selection,
        layer_lr_decay=extras.layer_lr_decay,
    )


def _optimizer_state(
    specs: Sequence[GroupSpec], model: nn.Module, args: TrainingArguments, remarks: list[str]
) -> dict[str, HeldState] | None:
    try:
        return held_state(specs, model, args)
    except FreezeError:
        raise
    except Exception as error:  # an optimizer may raise anything
        name = getattr(args.optim, "value", args.optim)
        remarks.append(f"Optimizer state unknown: {name} cannot step without values ({in_one_line(error)}).")
        return None


_EVERYTHING: frozenset[str] = frozenset()  # the key of full fine-tuning among the traces: no stage trains nothing


def _traces(
    model: nn.Module,
    args: TrainingArguments,
    resolved: ResolvedPlan,
    shown: Sequence[frozenset[str]],
    remarks: list[str],
    **batch: Any,
) -> dict[frozenset[str], StepTrace]:
    """By what trains, a step of it; under no names, one of full fine-tuning. {} and a remark where none can be had."""
    model_map = resolved.model_map
    full = frozenset(model_map.parts) - model_map.not_floating - model_map.inactive
    try:
        tracer = ModelTracer(model, args, **batch)
        traces = {names: tracer.trace(names) for names in {full, *shown}}
    except Exception as error:  # a model may raise anything
        name, hint = type(model).__name__, " If it takes other inputs, give a batch=." if batch["batch"] is None else ""
        remarks.append(
            f"Activations and cost unknown: {name} cannot be run without values ({in_one_line(error)}).{hint}"
        )
        return {}
    return {**traces, _EVERYTHING: traces[full]}


def _buffer_bytes(model: nn.Module, args: TrainingArguments) -> int:
    """Return what DDP broadcasts beside gradients, so that replicas have the same buffers."""
    if args.ddp_broadcast_buffers is False:
        return 0
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
