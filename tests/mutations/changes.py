"""Small changes to the package, each of which takes a mechanism out, beside the tests that must fail then."""

from pathlib import Path
from typing import NamedTuple


class Change(NamedTuple):
    """In hf_freeze/`file`, `old` (found exactly once) becomes `new`, and each of `tests` fails."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def change(file: str, old: str, new: str, *tests: str) -> Change:
    """Each of `tests` is `folder/file::name`, without "test_" and ".py"."""
    places = (test.partition("::") for test in tests)
    full = ((*place.rpartition("/")[::2], name) for place, _, name in places)
    paths = (Path("tests", room, f"test_{module}.py").as_posix() + f"::test_{name}" for room, module, name in full)
    return Change(file, old, new, tuple(paths))


SELECTION = [
    change(
        "selection/language.py",
        '            if not found and term != Role("rest"):',
        "            if False:",
        "plan/resolved::what_matches_nothing_is_an_error_wherever_it_stands",
    ),
    change(
        "selection/language.py",
        "for name in out_of.keys() & names if out_of else ():",
        "for name in ():",
        "selection/language::a_later_entry_overrides_an_earlier_one",
        "selection/language::the_last_entry_has_its_way",
    ),
    change(
        "selection/norms.py",
        "return only_its_own and all(",
        "return all(",
        "selection/user_modules::stacks_norms_and_biases_are_those_of_the_table",
    ),
    change(
        "selection/heads.py",
        "heads = [name for name in heads if not _IN_FRONT.fullmatch(name)] or heads",
        "heads = list(heads)",
        "selection/heads_by_name::the_head_is_the_classifier_alone",
    ),
    change(
        "selection/heads.py",
        "if between or (after and first > 0):",
        "if False:",
        "selection/heads_by_name::where_nobody_can_tell_the_candidates_are_named",
    ),
    change(
        "selection/frozen_marks.py",
        "        marks -= {below for",
        "        marks = {below for",
        "training/freezing::what_thawed_and_was_frozen_by_another_is_not_taken_for_ours",
    ),
]
PLAN = [
    change(
        "plan/timeline.py",
        "begins.append(max(start, begins[-1]))",
        "begins.append(start)",
        "plan/timeline::a_stage_that_waited_behind_a_plateau_begins_with_it",
    ),
    change(
        "plan/timeline.py",
        "(start or 0) >= max_steps",
        "False",
        "plan/timeline::stages_past_the_end_are_warned_of",
    ),
    change(
        "plan/timeline.py",
        "            if begins >= then:",
        "            if begins > then:",
        "plan/timeline::stages_out_of_order_or_at_one_time_are_refused",
    ),
    change(
        "plan/timeline.py",
        "start = min([*known",
        "start = max([*known",
        "plan/timeline::stages_begin_at_their_times_and_wait_behind_a_plateau",
    ),
    change(
        "plan/plateau.py",
        "(self.best is None and value == value)",
        "self.best is None",
        "plan/plateau::not_a_number_is_no_improvement_and_is_never_the_best",
    ),
    change(
        "plan/plateau.py",
        "gain > plateau.min_delta",
        "gain >= plateau.min_delta",
        "plan/plateau::patience_evaluations_without_a_better_one_end_the_wait",
    ),
    change(
        "plan/trainable.py",
        "(trainable | to_unfreeze) - to_freeze",
        "(trainable - to_freeze) | to_unfreeze",
        "plan/resolved::what_a_stage_both_thaws_and_freezes_is_frozen",
    ),
    change(
        "plan/trainable.py",
        "if name in model_map.inactive or name in model_map.not_floating:",
        "if name in model_map.inactive:",
        "selection/peft::quantised_weights_that_peft_froze_are_passed_over_by_roles",
    ),
    change(
        "plan/trainable.py",
        "if name not in model_map.frozen_at_hand_in:",
        "if True:",
        "selection/model_map::what_was_frozen_before_stays_frozen_under_all_and_roles",
    ),
]
TRAINING = [
    change(
        "training/freezing.py",
        "        if not trainable:\n            parameter.grad = None\n        if (rows :=",
        "        if (rows :=",
        "training/freezing::a_stale_gradient_is_dropped_so_that_it_cannot_move_a_frozen_weight",
    ),
    change(
        "training/freezing.py",
        '    del model.__dict__["train"]\n',
        "",
        "training/freezing::release_gives_the_models_own_train_back",
    ),
    change(
        "training/freezing.py",
        "        if self.is_over():",
        "        if False:",
        "training/left_behind::a_run_that_a_callback_stopped_leaves_a_plain_model",
    ),
    change(
        "training/proof.py",
        "now.get(name, digest) != digest",
        "False",
        "training/proof::a_frozen_weight_that_a_callback_edits_is_named_at_the_end",
    ),
    change(
        "training/proof.py",
        "if name in waited_for and rates.get(id(p), 0) > 0",
        "if name in waited_for",
        "training/proof::a_detached_part_whose_rate_is_nought_is_no_violation",
    ),
    change(
        "training/random_states.py",
        "        with random_states_kept():\n            return call",
        "        if True:\n            return call",
        "training/random_states::evaluating_changes_no_weight",
    ),
    change(
        "training/schedule.py",
        "    while stage and trains[stage - 1]:\n        stage -= 1",
        "",
        "training/schedule::a_ramp_goes_on_through_a_stage_in_which_the_group_still_trains",
    ),
    change(
        "training/schedule.py",
        "group.update({option: value",
        "dict({option: value",
        "training/schedule::reduce_on_plateau_lowers_every_group_and_the_gate_stays_on_top",
    ),
    change(
        "training/snapshot.py",
        "if written is not None and written != digests(saved):",
        "if False:",
        "training/damaged::best_weights_that_changed_are_refused",
    ),
]
BINARY = [
    change(
        "binary/saved_threshold.py",
        "        sidecar.unlink(missing_ok=True)",
        "        pass",
        "binary/checkpoint::killed_between_weights_and_sidecar_a_peft_folder_has_no_threshold_rather_than_a_wrong_one",
    ),
    change(
        "binary/saved_threshold.py",
        "    if not should_save:\n        return None",
        "",
        "binary/checkpoint::only_the_process_that_saves_writes",
    ),
    change(
        "binary/saved_threshold.py",
        "if _decision(complete) == _decision(in_config):",
        "if complete.threshold == in_config.threshold:",
        "binary/damaged::a_sidecar_that_disagrees_with_the_config_in_anything_that_decides_is_said",
    ),
    change(
        "binary/counts.py",
        "midpoint = self.tp[:-1] + self.tp[1:]",
        "midpoint = 2 * self.tp[1:]",
        "binary/metrics::tied_scores_are_counted_as_scikit_learn_counts_them",
    ),
    change(
        "binary/labelled_rows.py",
        "counted = values != IGNORED_LABEL",
        "counted = np.ones(len(values), dtype=bool)",
        "binary/margin::rows_labelled_minus_100_do_not_count",
    ),
    change(
        "binary/search.py",
        "return float(middle if middle > np.float32(low) else np.float32(high))",
        "return float(middle)",
        "binary/threshold::neighbouring_floats_keep_the_threshold_above_the_lower_score",
    ),
    change(
        "binary/inference.py",
        "(is_positive == bool(positive)).astype(np.int64)",
        "is_positive.astype(np.int64)",
        "binary/inference::labels_are_ids_also_when_class_0_is_the_positive_one",
    ),
    change(
        "binary/risk_control.py",
        "        lost = np.where(passed[candidate], lost, at_hand[candidate])",
        "        lost = lost * 0.0",
        "binary/risk_control::what_passes_is_what_passes_by_the_definition",
    ),
    change(
        "binary/resampling.py",
        "criterion.feasible(*bag) if control is None else control.passed(bag, kept)",
        "criterion.feasible(*bag)",
        "binary/risk_control::retunings_are_held_to_the_same_confidence",
    ),
    change(
        "binary/labelled_rows.py",
        "return tokens[counts], ids[counts], weight, int(ids.size - counts.sum())",
        "return tokens.reshape(-1, tokens.shape[2]), ids.reshape(-1), weight, 0",
        "binary/tokens::padding_hides_neither_probabilities_nor_is_it_taken_for_one",
    ),
    change(
        "binary/saved_threshold.py",
        "for name in order})",
        "for name in bare.labels})",
        "binary/multi_label::thresholds_are_saved_by_name_with_every_checkpoint_and_read_back",
    ),
    change(
        "binary/prevalence.py",
        "_LEVEL = 0.001",
        "_LEVEL = 0.00001",
        "binary/prevalence::what_is_far_is_what_the_stated_test_says",
    ),
    change(
        "binary/prevalence.py",
        "_FACTOR = 1.5",
        "_FACTOR = 1.0",
        "binary/prevalence::what_is_far_is_what_the_stated_test_says",
    ),
    change(
        "binary/prevalence.py",
        "    if counts.squares is not None:\n        n_seen",
        "    if False:\n        n_seen",
        "binary/prevalence::rows_that_weigh_differently_are_less_evidence",
    ),
    change(
        "binary/search.py",
        "shift = log_odds_shift(prevalence, float(counts.rows.tp[0]) / _n_rows(counts))",
        "shift = 0.0",
        "binary/calibration::a_prevalence_shifts_the_log_odds_by_those_of_the_classes",
    ),
    change(
        "binary/calibration.py",
        'given[1] if method == "platt" else shift)',
        'given[1] if method == "platt" else 0.0)',
        "binary/calibration::a_temperature_at_a_prevalence_is_fitted_around_the_shift",
    ),
    change(
        "binary/calibration.py",
        "found.append(probability_errors(probability, *_weight_of_scores(*left_out)))",
        "found.append(probability_errors(probability, *_weight_of_scores(*bag)))",
        "binary/calibration::the_errors_reported_are_those_on_fresh_rows",
    ),
    change(
        "binary/resampling.py",
        "effective = np.where((total > 0) & (squares > 0), ratio(total**2, squares), 0.0)",
        "effective = np.rint(total)",
        "binary/weights::halves_of_weighted_rows_have_the_mean_and_the_variance_of_halves_drawn_row_by_row",
    ),
    change(
        "binary/saved_threshold.py",
        '"prevalence": None, "slope"',
        '"slope"',
        "binary/calibration::calibration_is_saved_beside_the_weights_and_in_the_config",
    ),
    change(
        "training/thresholds.py",
        "if self._sample_weight_column not in inputs:",
        "if True:",
        "training/thresholds::a_weight_column_reaches_the_metrics_and_not_the_model",
    ),
]
FEATURES = [
    change(
        "features/store.py",
        'if content.pop("checksum") == _checksum(path, content):',
        'if content.pop("checksum"):',
        "features/cache::a_damaged_part_is_found_and_computed_again",
    ),
    change(
        "features/store.py",
        "if not torch.equal(mask.sum(1), self._lengths[places]):",
        "if False:",
        "features/cache::a_batch_with_other_lengths_than_stored_is_refused",
    ),
    change(
        "features/check.py",
        "        if _difference(other, one) > _tolerance(one.dtype, computed_in):",
        "        if False:",
        "features/rows::a_row_that_depends_on_its_neighbours_is_refused",
    ),
    change(
        "features/cost.py",
        "return saved - max((estimate.extraction_seconds for estimate in estimates), default=0.0)",
        "return saved",
        "features/cache::what_takes_longer_than_it_saves_is_not_kept",
    ),
    change(
        "features/cost.py",
        "min(feature_set.batch_size, len(feature_set.source), _TIMED_ROWS)",
        "min(len(feature_set.source), _TIMED_ROWS)",
        "features/rows::nothing_that_is_tried_takes_more_rows_than_a_batch_of_the_run",
    ),
    change(
        "features/sets.py",
        "min(_CHECKED_ROWS, len(self.source), self.batch_size)",
        "min(_CHECKED_ROWS, len(self.source))",
        "features/rows::nothing_that_is_tried_takes_more_rows_than_a_batch_of_the_run",
    ),
    change(
        "features/sets.py",
        "times = min(max(_COMPARED_ROWS // rows, 1), _MOST_READINGS)",
        "times = 1",
        "features/rows::of_rows_that_change_now_and_then_nothing_is_kept_and_the_run_is_as_without",
    ),
    change(
        "features/extraction.py",
        "if keys is None or not np.array_equal(keys, work.keys[rows]):",
        "if False:",
        "features/rows::where_a_row_changes_before_it_is_computed_nothing_is_stored",
    ),
    change(
        "features/extraction.py",
        "pytree.tree_map_only(torch.Tensor, torch.clone, output)",
        "output",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[in place between two frozen parts]",
    ),
    change(
        "features/batches.py",
        "        del batch[ROWS]  #",
        "        raise TypeError  #",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[batches read by attribute]",
    ),
    change(
        "features/batches.py",
        "        except Exception:  # whatever a batch holds or refuses to hold,",
        "        except KeyError:  #",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[batches that take no other key]",
    ),
    change(
        "features/batches.py",
        "            rows = [copy.deepcopy(row) for row in rows]",
        "            pass",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a collator that takes entries out of the rows]",
        "features/odd_runs::a_collator_that_writes_into_the_rows_finds_them_as_in_a_run_without",
    ),
    change(
        "features/batches.py",
        "            if digests is not None and len(digests) != len(rows):",
        "            if False:",
        "features/odd_runs::where_a_collator_leaves_rows_out_the_reason_is_said",
    ),
    change(
        "features/cache.py",
        "            except Exception as error:  # nothing that is looked for here",
        "            except CacheRefused as error:  #",
        "features/cache::nothing_that_fails_while_it_is_looked_for_ends_a_run",
    ),
    change(
        "features/store.py",
        "except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:",
        "except ZeroDivisionError as error:",
        "features/cache::a_part_that_another_run_is_writing_does_not_hinder_one_that_reads_others",
    ),
    change(
        "features/check.py",
        "        with untouched(model):  # a head may remember",
        "        if True:  # a head may remember",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a head that remembers]",
    ),
    change(
        "no_trace.py",
        "buffers_kept(model), modules_kept(model):\n        yield",
        "buffers_kept(model):\n        yield",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a head that remembers]",
    ),
    change(
        "no_trace.py",
        "(*model.buffers(), *plain)",
        "model.buffers()",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a head that remembers]",
    ),
    change(
        "no_trace.py",
        "isinstance(value, list | deque)",
        "False",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a head that remembers]",
    ),
    change(
        "training/extract.py",
        "still = check_still(model, frontier, forward, batches=probes, shared=feature_set.shared)",
        "still = None",
        "features/extract::rows_whose_features_are_not_their_own_are_refused",
    ),
    change(
        "training/cached_features.py",
        "            except Exception as error:  # a loader that the run itself may never build",
        "            except CacheRefused as error:",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a loader that fails at first]",
    ),
    change(
        "training/cached_features.py",
        "        with random_states_kept():\n            self._cache.enter",
        "        if True:\n            self._cache.enter",
        "features/odd_runs::an_odd_run_ends_where_one_without_features_does[a training loader that draws]",
    ),
    change(
        "training/extract.py",
        "        stack.enter_context(random_states_kept(dataset, collator))\n",
        "",
        "features/extract::generators_that_the_data_and_the_collator_hold_are_put_back",
    ),
]
DEBUGGING = [
    change(
        "debugging/outputs.py",
        'if loss_kind == "binary cross entropy of probabilities":',
        "if False:",
        "debugging/faults::a_loss_that_knows_of_the_sigmoid_is_a_warning_and_another_fails",
    ),
    change(
        "debugging/inputs.py",
        "if isinstance(error, OutOfRange) and not (error.is_counting and error.module is not table):",
        "if False:",
        "debugging/faults::ids_are_held_against_the_embedding_before_it_is_asked",
    ),
]
REPORTING = [
    change(
        "reporting/comparison/verdicts.py",
        "    if not all(map(_learns, runs)) or not before.f1",
        "    if not before.f1",
        "reporting/compare_verdicts::freezing_helps_is_silent_without_the_evidence",
    ),
    change(
        "reporting/comparison/verdicts.py",
        " and gain > 1 / max(other[0].n_pos, 1)",
        "",
        "reporting/compare_verdicts::a_plan_is_better_outside_the_interval_and_by_more_than_one_positive_row",
    ),
]
CHECKPOINTS = [
    change(
        "training/whole.py",
        "    if lost := _lost_by_a_process(folder):\n",
        "    if lost := None:\n",
        "training/damaged::random_states_that_one_of_several_processes_did_not_write_are_named",
    ),
    change(
        "training/merge_trained.py",
        "    refuse_changed_config(folder)\n",
        "",
        "training/trained_damaged::a_configuration_that_was_edited_or_lost_is_named",
    ),
    change(
        "training/trained_only.py",
        "    if RESERVED_NAME in whole:\n",
        "    if False:\n",
        "training/trained_damaged::a_name_that_no_file_can_hold_is_refused_before_training",
    ),
    change(
        "training/merge_trained.py",
        "(CHAT_TEMPLATE_DIR, *_modules_in(folder))",
        "(CHAT_TEMPLATE_DIR,)",
        "trainers/trained_sentences::a_merged_folder_is_what_the_trainer_would_have_saved[pooling of its own]",
    ),
    change(
        "training/merge_trained.py",
        "    if not isinstance(model, PreTrainedModel):\n",
        "    if False:\n",
        "trainers/trained_sentences::an_encoder_that_is_not_of_transformers_is_merged_before_it_trains_again",
    ),
    change(
        "training/trained_only.py",
        "resolved.model_map.every_alias(resolved.trains(0))",
        "resolved.names[0]",
        "training/rotation::what_trained_up_to_then_is_saved_and_the_resumed_run_ends_bit_for_bit[2]",
    ),
    change(
        "training/trained_only.py",
        "known=run.frozen_digests",
        "known={}",
        "training/trained_only::at_the_start_of_a_run_a_frozen_weight_is_read_once_for_the_proof_and_for_its_checkpoints",
    ),
    change(
        "training/load_trained.py",
        "    set_base(model, trained.base)\n",
        "",
        "training/trained_only::checkpoints_of_a_model_that_was_loaded_into_belong_to_its_first_base",
    ),
    change(
        "training/what_trained.py",
        "        self._keep(new)\n        self._names |= new\n",
        "        self._names |= new\n",
        "training/trained_only::the_best_model_is_loaded_with_what_began_to_train_after_it_back_at_its_base[2]",
        "training/trained_only::one_trainer_goes_back_to_its_own_earlier_checkpoint",
    ),
    change(
        "training/what_trained.py",
        "        self._keep(name for name in trained.tensors if name not in first)\n",
        "",
        "training/trained_only::the_best_model_of_a_run_that_was_resumed_after_it_is_loaded_too",
    ),
    change(
        "training/what_trained.py",
        "self._names |= self._differing(tensors, known) if described else tensors.keys() - base.digests.keys()",
        "pass",
        "training/trained_only::a_second_trainer_over_the_model_saves_what_the_first_one_trained",
    ),
    change(
        "training/what_trained.py",
        "if name in self._names or name in others}",
        "if name in self._names}",
        "training/trained_models::statistics_that_moved_are_saved_and_others_are_not",
    ),
    change(
        "training/base_model.py",
        'if getattr(tensor, "_is_hf_initialized", False)}',
        "}",
        "training/trained_only::what_the_base_lacks_is_saved_although_it_is_frozen",
    ),
    change(
        "training/base_model.py",
        "same.get(key, key in marked)}",
        "key in marked}",
        "training/trained_base::what_the_files_of_the_base_do_not_hold_is_saved[trained by another Trainer-bin]",
        "training/trained_base::what_they_hold_is_not_saved_in_whatever_parts_they_are[safetensors]",
        "training/trained_models::resized_embeddings_are_saved_whole",
    ),
    change(
        "training/base_model.py",
        "if not tensors[key]._version}",
        "}",
        "training/trained_base::what_is_filed_under_another_name_is_saved_where_it_was_changed_since",
    ),
    change(
        "training/trained_only.py",
        "    if unknown := next((name for name in whole if name not in known), None):\n",
        "    if unknown := None:\n",
        "training/trained_damaged::what_would_be_left_out_in_silence_is_refused_before_training[extra state]",
    ),
    change(
        "training/trained_only.py",
        "        refuse_saving_over_base(self.model, folder)\n",
        "",
        "training/trained_damaged::what_trained_is_not_saved_over_its_base",
    ),
    change(
        "training/trained_only.py",
        ' or parts[0].startswith(f"{PREFIX_CHECKPOINT_DIR}-")):',
        "):",
        "training/trained_damaged::the_base_of_any_part_is_looked_for_in_all_that_is_written_over_or_deleted",
    ),
    change(
        "training/merge_trained.py",
        "    if Path(name).resolve() == Path(folder).resolve():\n",
        "    if False:\n",
        "training/trained_damaged::a_folder_is_not_its_own_base",
    ),
    change(
        "training/checkpoint.py",
        "own.clone() if place in places else own",
        "own",
        "training/trained_models::parameters_over_the_same_memory_are_saved_each",
    ),
    change(
        "training/whole.py",
        "parts.testzip() if checked else None",
        "None",
        "training/trained_damaged::a_flipped_bit_in_a_state_of_the_run_is_named_with_the_checkpoint_before"
        "[optimizer.pt-in_the_middle]",
    ),
    change(
        "training/whole.py",
        "zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:",
        "OSError) as error:",
        "training/trained_damaged::a_flipped_bit_in_a_state_of_the_run_is_named_with_the_checkpoint_before"
        "[optimizer.pt-in_the_frame]",
    ),
    change(
        "training/loss_window.py",
        "loss.to(torch.promote_types(loss.dtype, torch.float32))",
        "loss",
        "training/resume::the_mean_loss_of_a_model_in_half_precision_goes_on_to_the_last_bit",
    ),
    change(
        "training/digests.py",
        "values[name] ^ _of_kind(tensor)",
        "values[name]",
        "training/trained_base::rows_of_zeros_more_are_another_base",
        "training/trained_base::zeros_in_another_precision_are_another_base",
    ),
    change(
        "training/load_trained.py",
        "    if lost := [name for name in differing if kept.get(name) != base[name]]:",
        "    if lost := [name for name in differing if False]:",
        "training/trained_damaged::a_base_that_was_updated_is_refused_by_its_first_tensor",
        "training/peft::another_base_under_the_adapter_is_refused_by_its_first_tensor",
    ),
    change(
        "training/trained_file.py",
        "        if written.get(name) != now.get(name):",
        "        if False:",
        "training/trained_damaged::a_flipped_byte_in_any_tensor_is_named",
    ),
    change(
        "training/trained_file.py",
        '    if metadata.get("sha256") != _sha256(text):',
        "    if not text:",
        "training/trained_damaged::a_flipped_bit_anywhere_in_the_header_is_refused",
    ),
    change(
        "training/trained_only.py",
        "        (folder / name).unlink(missing_ok=True)\n",
        "        pass\n",
        "training/trained_only::whole_weights_of_an_earlier_run_do_not_hide_what_trained",
    ),
    change(
        "training/trained_only.py",
        "    refuse_loading(folder)\n",
        "",
        "training/trained_only::loading_such_a_folder_as_a_whole_model_fails_with_the_command[AutoModel]",
    ),
    change(
        "training/trained_only.py",
        "        for path in dict(_whole_files(folder).items() - before.items()):",
        "        for path in _whole_files(folder):",
        "training/trained_only::whole_checkpoints_of_another_run_in_the_folder_are_left_alone",
    ),
    change(
        "training/trained_only.py",
        "            shutil.copy(trained, run_folder)\n",
        "            pass\n",
        "training/trained_shared::what_trained_is_in_the_folder_that_is_pushed",
    ),
    change(
        "training/trained_only.py",
        "            _clear(run_folder)",
        "            pass",
        "training/trained_shared::whole_weights_of_an_earlier_run_are_not_pushed_along",
    ),
    change(
        "training/trainer.py",
        "            refuse_split_checkpoints(self._settings, args, model)\n",
        "            pass\n",
        "training/trained_shared::weights_in_pieces_are_refused_in_the_constructor",
    ),
    change(
        "training/trained_only.py",
        "len(parts) < 2",
        "False",
        "training/trained_damaged::a_base_inside_the_output_folder_is_refused_before_training",
    ),
    change(
        "training/trained_only.py",
        " and value.layout is torch.strided",
        "",
        "training/trained_base::a_sparse_buffer_is_refused_before_training",
    ),
    change(
        "training/base_files.py",
        "best, commit = same, None if Path(name).is_dir() else folder.name",
        "best = same",
        "training/trained_base::a_base_on_the_hub_is_merged_at_its_commit_whatever_was_pushed_since",
    ),
    change(
        "training/base_files.py",
        "torch.equal(as_words(in_file.to(tensor)), as_words(tensor))",
        "torch.equal(in_file.to(tensor), tensor)",
        "training/trained_base::a_zero_that_changed_its_sign_is_saved",
    ),
    change(
        "training/base_model.py",
        "plain_name(key.removeprefix(path), {}) for key",
        "key.removeprefix(path) for key",
        "training/trained_base::the_base_of_adapters_is_held_against_its_files_too",
    ),
    change(
        "training/base_model.py",
        "        same |= {key: found[plain] for",
        "        same = {key: found[plain] for",
        "training/trained_base::each_model_inside_a_module_is_held_against_its_own_files",
    ),
    change(
        "training/what_trained.py",
        "tensors.keys() - base.digests.keys()",
        "set()",
        "training/trained_only::what_the_base_lacks_is_saved_although_it_is_frozen",
    ),
    change(
        "training/trainer.py",
        "            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)\n",
        "",
        "training/trained_damaged::a_save_over_an_older_checkpoint_that_breaks_off_does_not_pass_for_it",
    ),
    change(
        "training/merge_trained.py",
        "    if holds_trained_only(name):\n        model = _load(name, None)\n    else:\n        model = _load_base(",
        "    if True:\n        model = _load_base(",
        "training/trained_only::a_base_that_holds_only_what_trained_is_merged_first",
    ),
]
REPLACED = [
    change(
        "training/run_events.py",
        'if {"train_runtime", "train_loss"} <= logs.keys():',
        'if "train_runtime" in logs:',
        "training/replaced::an_edit_is_named_also_where_each_log_holds_the_tokens_and_the_time_since_the_start",
    ),
    change(
        "training/trainer.py",
        "        bound = self._hold_against(self.args, self.model)\n        self.add",
        "        bound = self._freezing.bound or self._hold_against(self.args, self.model)\n        self.add",
        "trainers/constructors::a_mistake_that_only_the_model_at_the_end_shows_is_named_by_the_constructor",
    ),
    change(
        "training/trainer.py",
        "if as_given != self._plan_as_it_is or others_train:",
        "if others_train:",
        "trainers/constructors::what_a_trainer_freezes_in_its_constructor_stays_frozen_under_all",
    ),
    change(
        "training/trainer.py",
        "logger = logging.getLogger(__name__)\nrequire_private()\n",
        "logger = logging.getLogger(__name__)\n",
        "private::importing_the_package_names_what_is_gone",
    ),
    change(
        "training/beside_model.py",
        "total.to_sparse(1) if sparse else total",
        "total",
        "training/beside_model::an_averaged_gradient_is_sparse_where_it_was[True]",
    ),
    change(
        "training/run.py",
        "        if now is not before:",
        "        if False:",
        "training/replaced::an_optimizer_that_is_replaced_in_mid_run_is_refused",
    ),
    change(
        "training/run.py",
        "        hold_requires_grad(self._adapters)\n",
        "        pass\n",
        "training/replaced::an_adapter_that_is_off_for_a_while_comes_back_as_the_plan_has_it",
    ),
    change(
        "training/planned_training.py",
        "            self._run.hold_adapters()\n",
        "            pass",
        "training/replaced::an_adapter_that_is_off_for_a_while_comes_back_as_the_plan_has_it[ReferenceTrainer-2-mixin]",
    ),
    change(
        "training/proof.py",
        "if name in ever and id(p) not in held",
        "if False",
        "training/replaced::a_parameter_that_is_taken_out_of_its_group_in_mid_run_is_named",
    ),
    change(
        "training/proof.py",
        "        if not flipped:\n",
        "        if True:\n",
        "training/replaced::a_parameter_whose_requires_grad_another_callback_sets_is_named",
    ),
    change(
        "training/run_events.py",
        "self._training.conclude(is_verified=has_best)",
        "self._training.conclude()",
        "training/replaced::the_best_weights_are_loaded_after_the_proof_whatever_trained_in_between",
    ),
    change(
        "training/run_events.py",
        "        if args.load_best_model_at_end:\n            self._training.verify()",
        "        if False:\n            self._training.verify()",
        "training/replaced::a_frozen_weight_edited_in_the_last_step_is_named_before_the_best_are_loaded",
    ),
]
SETTLING = [
    change(
        "training/settling.py",
        "torch.linalg.vector_norm(now - before)) / watch.rate",
        "torch.linalg.vector_norm(now - before))",
        "training/settled::weights_that_move_less_as_the_rate_falls_alone_have_not_settled",
    ),
    change(
        "training/settling.py",
        " or not watch.rate:",
        ":",
        "training/settled::a_window_in_which_the_rate_was_0_says_nothing",
    ),
    change(
        "training/settling.py",
        "below=self.below + 1 if is_below else 0",
        "below=self.below + is_below",
        "training/settled::patience_is_so_many_windows_in_a_row",
    ),
    change(
        "training/settling.py",
        "watches[stage].below >= self._settled[stage].patience",
        "watches[stage].below >= 1",
        "training/settled::patience_is_so_many_windows_in_a_row",
    ),
    change(
        "training/settling.py",
        "        if not math.isfinite(distance):\n            return replace(self, below=0)\n",
        "",
        "training/settled::a_distance_that_is_not_finite_is_not_settled",
    ),
    change(
        "training/settling.py",
        " and watches[index].seen != step]",
        "]",
        "training/settled::asking_twice_for_one_step_measures_once",
    ),
    change(
        "training/settling.py",
        "                watches.pop(index, None)\n",
        "                pass\n",
        "training/settled::layers_that_train_again_have_to_settle_again",
    ),
    change(
        "training/settling.py",
        " if watches[index].steps >= FRESH_STEPS else None",
        "",
        "training/settled::adams_long_first_steps_settle_nothing[1-constant]",
    ),
    change(
        "training/settling.py",
        "None if rises else self.sample",
        "self.sample",
        "training/settled::nothing_settles_while_a_warmup_raises_the_rate[constant_with_warmup]",
    ),
    change(
        "training/settling.py",
        "        self._refuse_rates_of_0()\n",
        "",
        "training/settled::what_has_a_rate_of_0_and_waits_to_settle_is_refused_before_the_first_step",
    ),
    change(
        "training/settling.py",
        "* (len(flat) / count) ** 0.5",
        "* 1.0",
        "training/settled::the_distance_of_a_sample_is_an_estimate_of_that_of_all_weights",
    ),
    change(
        "training/run.py",
        "        self._settling.optimizer_steps(self.state.settling, stage=self.state.stage)\n",
        "",
        "training/settled::a_stage_begins_when_its_weights_move_less_for_their_rate_than_they_did_at_most",
    ),
    change(
        "training/run_state.py",
        '"begins": self.begins, "settling": settling}',
        '"begins": self.begins, "settling": {}}',
        "training/settled::a_run_resumes_bit_equal_before_at_and_after_the_moment[15-trainer]",
    ),
    change(
        "training/saved_state.py",
        "all(key.isdecimal() and _is_watch(seen)",
        "all(key.isdecimal()",
        "training/settled::a_damaged_measurement_in_a_checkpoint_is_refused",
    ),
    change(
        "plan/timeline.py",
        "        self._check_windows(max_steps)\n",
        "",
        "training/settled::a_run_too_short_to_measure_is_refused_before_the_first_step",
    ),
    change(
        "plan/freeze_plan.py",
        "    _check_settling(timed, stages)\n",
        "",
        "training/settled::what_does_not_train_cannot_settle",
        "training/settled::the_same_layers_do_not_wait_for_a_plateau_as_well",
    ),
    change(
        "plan/written_out.py",
        "if len(stack.layers) - rule.keep > index",
        "if len(stack.layers) > index + 99",
        "training/settled::auto_freeze_goes_from_the_bottom_up_and_keeps_the_top",
    ),
    change(
        "training/grad_norms.py",
        "{name: norm * total / clipped for",
        "{name: norm for",
        "training/grad_norms::the_norms_are_those_before_clipping_and_make_up_the_whole",
    ),
    change(
        "training/groups.py",
        'resolved, rungs, argument="lr_factors")',
        'resolved, rungs, argument="lr_factors") and {}',
        "training/groups::a_plan_brings_its_rates_and_what_is_given_beside_it_wins",
    ),
    change(
        "training/groups.py",
        'argument="group_lrs", after=len(factors))',
        'argument="group_lrs", after=len(factors)) and {}',
        "training/groups::a_plan_brings_its_rates_and_what_is_given_beside_it_wins",
    ),
    change(
        "training/groups.py",
        "{**rung.options, **options}",
        '{"lr": 1e-3, **options}',
        "training/groups::options_without_a_rate_keep_the_rate_that_plan_and_depth_give[plan0-1.0-head]",
    ),
    change(
        "training/grad_norms.py",
        "dtype=torch.float32 if values.itemsize < 4 else None",
        "dtype=None",
        "training/grad_norms::norms_are_added_up_in_no_less_than_single_precision[dtype0]",
    ),
    change(
        "training/groups.py",
        "spread=plan.lr_spread)",
        "spread=1.0)",
        "training/groups::a_spread_goes_from_the_head_to_the_embeddings_by_one_factor_per_layer",
    ),
    change(
        "training/schedule.py",
        "    factor = factors[stage]\n",
        "    factor = 1.0\n",
        "training/schedule::fine_tune_halves_the_rates_and_spreads_them_when_everything_trains",
    ),
]
SUGGESTED = [
    change(
        "reporting/layers/gradient_scores.py",
        "sorted(names - norm_layers or names)",
        "sorted(names)",
        "reporting/suggest_blocks::the_score_of_a_block_is_the_norm_of_its_gradient_over_that_of_its_weights_averaged_over_batches",
    ),
    change(
        "reporting/layers/gradient_scores.py",
        "for name in members)) / sizes[block])",
        "for name in members)))",
        "reporting/suggest_blocks::the_score_of_a_block_is_the_norm_of_its_gradient_over_that_of_its_weights_averaged_over_batches",
    ),
    change(
        "reporting/layers/gradient_scores.py",
        "        model.eval()\n",
        "",
        "reporting/suggest_blocks::the_scores_are_those_of_the_model_without_dropout",
    ),
    change(
        "reporting/layers/gradient_scores.py",
        "with untouched(model), gradients_kept(model), modules_kept(model), torch.enable_grad():",
        "with torch.enable_grad():",
        "reporting/suggest_blocks::the_model_is_left_as_it_was[True]",
    ),
    change(
        "reporting/layers/gradient_scores.py",
        "parameter.requires_grad_(id(parameter) in ids)",
        "pass",
        "reporting/suggest_blocks::layers_handed_in_frozen_are_scored_like_the_others",
    ),
    change(
        "reporting/layers/block_suggestion.py",
        "trainable=list(factors), lr_factors",
        'trainable="all", lr_factors',
        "reporting/suggest_blocks::the_plans_train_what_was_scored_also_where_it_was_handed_in_frozen",
    ),
    change(
        "reporting/layers/block_suggestion.py",
        "factors = {block: score / most for",
        "factors = {block: 1.0 for",
        "reporting/suggest_blocks::the_soft_plan_has_rates_in_proportion_and_freezes_what_has_no_gradient",
    ),
    change(
        "reporting/layers/spectrum_scores.py",
        'kind = re.sub(r"(?<=\\.)\\d+(?=\\.)", "*", name)',
        'kind = "*"',
        "reporting/suggest_blocks::ranks_are_within_one_kind_of_matrix",
    ),
    change(
        "reporting/layers/spectrum_scores.py",
        "    bound = noise * (1 +",
        "    bound = 0 * (1 +",
        "reporting/suggest_blocks::the_spectrum_puts_the_layer_first_whose_matrices_have_signal_above_noise",
    ),
]
ROTATION = [
    change(
        "training/forgetting.py",
        "            state.pop(bound.parameters[name], None)",
        "            pass",
        "training/forgetting::the_optimizer_holds_what_trains_and_no_more_as_preview_says[adafactor]",
        "training/rotation::each_step_moves_the_layers_of_its_period_and_the_optimizer_holds_their_state_alone",
    ),
    change(
        "training/forgetting.py",
        "    forget(optimizer, bound, gone)\n",
        "",
        "training/forgetting::what_is_unfrozen_again_starts_fresh_and_the_log_says_so",
        "training/forgetting::a_checkpoint_holds_the_state_of_its_stage_and_resumes_bit_for_bit[3]",
    ),
    change(
        "training/forgetting.py",
        "    if anew:",
        "    if False:",
        "training/forgetting::what_is_unfrozen_again_starts_fresh_and_the_log_says_so",
    ),
    change(
        "training/forgetting.py",
        ' and not any(state.get("step", 0) for state in states)',
        "",
        "training/forgetting::a_second_run_begins_with_the_state_of_its_first_stage[both-adamw_torch]",
    ),
    change(
        "training/run.py",
        "            forget(self._optimizer, self._bound, self._bound.parameters.keys() - self.resolved.trains(0))",
        "            pass",
        "training/rotation::train_can_be_called_again_and_begins_with_the_first_period",
    ),
    change(
        "training/run.py",
        "self.resolved.rotation.period(max(step - 1, 0))",
        "0",
        "training/rotation::it_resumes_bit_for_bit_in_mid_period_and_between_periods[6]",
    ),
    change(
        "training/run.py",
        "        forget(self._optimizer, self._bound, before - self.trains)\n",
        "",
        "training/rotation::it_resumes_bit_for_bit_in_mid_period_and_between_periods[7]",
        "training/rotation::in_a_loop_of_ones_own_gradients_and_state_are_of_what_trains_alone[False]",
    ),
    change(
        "training/run.py",
        "        self.verify()\n        self._apply(self.state.stage)\n",
        "        self._apply(self.state.stage)\n",
        "training/rotation::a_change_of_a_layer_while_it_is_frozen_is_proved_at_the_end_of_the_period[0]",
        "training/rotation::a_change_of_a_layer_while_it_is_frozen_is_proved_at_the_end_of_the_period[4]",
    ),
    change(
        "training/freezing.py",
        "            parameter.grad = None\n        if (rows :=",
        "            pass\n        if (rows :=",
        "training/rotation::in_a_loop_of_ones_own_gradients_and_state_are_of_what_trains_alone[False]",
        "training/rotation::in_a_loop_of_ones_own_gradients_and_state_are_of_what_trains_alone[True]",
    ),
    change(
        "training/proof.py",
        "for name, tensor in frozen.items() if name not in self.frozen}",
        "for name, tensor in frozen.items()}",
        "training/rotation::where_a_period_begins_a_weight_that_stays_frozen_is_read_once",
    ),
    change(
        "training/schedule.py",
        "and (takes_turns or any(",
        "and (any(",
        "training/rotation::a_ramp_is_refused_where_groups_hold_layers_of_several_periods",
    ),
    change(
        "plan/rotation.py",
        '        random.Random(f"{rule.seed} {cycle}").shuffle(places)',
        "        random.shuffle(places)",
        "plan/rotation::the_layers_follow_the_seed_and_no_global_random_state",
    ),
    change(
        "plan/rotation.py",
        'cycle if self.rule.order == "random" else 0',
        "0",
        "plan/rotation::every_layer_comes_once_in_a_cycle_and_each_random_cycle_has_its_own_order",
    ),
    change(
        "plan/rotation.py",
        "        if not names or not names <= self.layer_of.keys():\n            return 1.0\n",
        "        names = names & self.layer_of.keys()\n",
        "plan/rotation::a_group_of_several_layers_trains_while_one_of_them_does_and_with_what_trains_throughout",
    ),
    change(
        "plan/rotation.py",
        "        if periods >= self.periods_per_cycle:",
        "        if True:",
        "plan/rotation::a_run_that_ends_before_every_layer_had_its_turn_is_warned_of",
    ),
    change(
        "plan/freeze_plan.py",
        "last = min(period, self.rotation.periods_per_cycle - 1)",
        "last = self.rotation.periods_per_cycle - 1",
        "training/model_card::what_never_came_to_train_is_not_said_to_have_trained[plan1]",
    ),
    change(
        "reporting/preview/rates.py",
        "        return not self.trains[name][stage] or not self._turn(name, step)",
        "        return not self.trains[name][stage]",
        "reporting/pictures::a_layer_whose_turn_it_is_not_is_grey_in_the_picture_of_a_rotation",
    ),
]
ROWS = [
    change(
        "training/run.py",
        "        self.undo_at_end(step_rows_alone(self._optimizer, self._bound))\n",
        "",
        "training/rows_in_optimizer::a_plain_trainer_has_moments_for_the_rows_that_train_and_moves_no_others[adamw_torch-torch]",
    ),
    change(
        "training/rows_in_optimizer.py",
        "if not isinstance(inner, Optimizer) or any(isinstance(value, Optimizer) for value in vars(inner).values()):",
        "if False:",
        "training/rows_in_optimizer::an_optimizer_inside_another_keeps_the_matrix_and_moves_the_rows_alone",
    ),
    change(
        "training/rows_in_optimizer.py",
        "                undo.callback(place.close)\n",
        "                pass\n",
        "training/rows_in_optimizer::without_the_callback_the_whole_matrix_trains_again",
    ),
    change(
        "training/rows_in_optimizer.py",
        "            self._hooks.callback(out(lambda *_: self._put_matrix()).remove)\n",
        "            pass\n",
        "training/rows_in_optimizer::a_run_of_a_plain_trainer_resumes_bit_equal_with_a_place_for_each_tensor[plan0]",
    ),
    change(
        "training/rows_in_optimizer.py",
        "            self._hooks.callback(back(lambda *_: self._put_members()).remove)\n",
        "            pass\n",
        "training/rows_in_optimizer::a_state_that_is_asked_for_and_loaded_in_mid_run_changes_nothing",
    ),
    change(
        "training/rows_in_optimizer.py",
        "            _BETWEEN_RUNS.setdefault(self._optimizer, {})[self._name] = state\n",
        "            pass\n",
        "training/rows_in_optimizer::a_second_run_goes_on_with_the_moments_of_the_first",
    ),
    change(
        "training/rows_in_optimizer.py",
        "        return value.clone()  # counts",
        "        return value  # counts",
        "training/rows_in_optimizer::a_checkpoint_of_steps_over_the_whole_matrix_is_gone_on_with",
    ),
    change(
        "training/rows_in_optimizer.py",
        "    if type(value) is torch.Tensor and value.shape == (len(around), *shape[1:]):\n",
        "    if True:\n",
        "training/rows_in_optimizer::a_state_of_the_whole_matrix_that_does_not_tell_its_rows_is_refused",
    ),
    change(
        "training/rows_in_optimizer.py",
        "    if other := next((one for one in held if one.start < rows.stop and rows.start < one.stop), None):\n",
        "    if other := None:\n",
        "training/rows_in_optimizer::a_state_that_was_cut_into_other_rows_is_refused",
    ),
    change(
        "training/beside_model.py",
        "if id(whole_of(parameter)) not in of_model]",
        "if id(parameter) not in of_model]",
        "training/rows_in_optimizer::a_run_of_a_plain_trainer_resumes_bit_equal_with_a_place_for_each_tensor[plan0]",
    ),
    change(
        "training/row_parameters.py",
        "                matrix.grad[start:stop] = 0\n",
        "                pass\n",
        "training/rows::only_the_gradient_of_what_trains_is_clipped_and_logged",
    ),
    change(
        "training/row_parameters.py",
        "            matrix[start:stop] = run\n",
        "            pass\n",
        "training/rows::a_loop_of_ones_own_over_all_parameters_leaves_the_other_rows",
        "training/rows_in_optimizer::an_optimizer_inside_another_keeps_the_matrix_and_moves_the_rows_alone",
    ),
    change(
        "training/row_parameters.py",
        "            matrix.grad = self._linked = None\n",
        "            pass\n",
        "training/rows::gradients_that_were_zeroed_without_a_step_are_gone",
    ),
    change(
        "training/row_parameters.py",
        "                member.data = rows\n",
        "                pass\n",
        "training/rows::rows_follow_a_matrix_that_is_put_elsewhere",
    ),
    change(
        "training/row_parameters.py",
        "                self._there().grad = None\n",
        "                pass\n",
        "training/rows::no_gradient_of_a_matrix_is_kept_between_steps",
    ),
    change(
        "training/row_parameters.py",
        "        if trained.all() and not self._members:\n",
        "        if False:\n",
        "training/rows::nothing_stays_at_a_matrix_that_trains_whole_again",
    ),
    change(
        "training/row_parameters.py",
        "        if matrix.shape != self.shape:\n",
        "        if False:\n",
        "training/rows::a_matrix_that_is_resized_in_the_middle_of_a_loop_is_refused",
    ),
    change(
        "training/base_files.py",
        "    if 0 < count < len(tensor):\n",
        "    if False:\n",
        "training/rows_saved::rows_of_added_tokens_are_put_back_into_a_base_without_them",
    ),
    change(
        "training/saved_rows.py",
        "    return replace(base, digests={**kept, **typed_digests(parts)})\n",
        "    return replace(base, digests=kept)\n",
        "training/rows_saved::only_the_rows_are_written_and_load_trained_puts_them_back",
        "training/rows_saved::another_base_is_refused_by_its_frozen_rows",
    ),
    change(
        "selection/rows.py",
        "    if outside is not None or start >= count:",
        "    if False:",
        "selection/rows::rows_that_there_are_not_are_refused[embeddings[-99:]-past the end]",
    ),
]
CHANGES = [
    *(*SELECTION, *PLAN, *TRAINING, *SETTLING, *REPLACED, *CHECKPOINTS),
    *(*BINARY, *FEATURES, *DEBUGGING, *REPORTING, *SUGGESTED, *ROTATION, *ROWS),
]
