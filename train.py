"""Fine-tune a grown network on images: `accelerate launch train.py` or `python train.py`; `--help` lists options."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import sys
import time
from typing import Any

import torch
import tyro
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from training import devices, earlier, evaluation, networks, sharding, trackers
from training.blocks import BlockNorms, BlockVoices, block_scales
from training.config import Config
from training.data import is_readable
from training.distillation import distil, heads_of
from training.faults import Fault, shared_writing
from training.interruption import EXIT_INTERRUPTED, InterruptedRun, Interruption
from training.keep_heads import measure_after
from training.measures import phrase
from training.metrics import evaluate, kept_answers, objective, split_output
from training.progress import LiveLine, describe_epoch
from training.report import write_report
from training.run_folder import RunFolder, describe_run, find_folder, make_folder
from training.session import (
    Session,
    begin,
    change,
    find_teacher,
    plain_weights,
    prepare,
    refuse_faults,
    resume,
    save,
)

EXIT_USER_ERROR = 2
EXIT_AT_ONCE = 128 + signal.SIGINT  # as shells have it
# Updates between two looks at the device: for the live line, and for several processes to agree on stopping.
LOOK_EVERY = 10


def main(config: Config) -> dict[str, Any]:
    """Run one training from its configuration to its run folder.

    Returns:
        top1, top5 (None below five classes) and loss of the best epoch, or map and loss with --multi-label; epoch,
        seconds, run (the folder's path) and report (of report.html, None without one); with --eval-only what
        `training.evaluation.evaluate_only` returns.

    Raises:
        ValueError: The configuration, the data or the weights do not fit; nothing is left behind.
        InterruptedRun: A signal asked to stop; the run is saved.
    """
    if config.eval_only:
        return evaluation.evaluate_only(config)
    config = config.resolved()
    config.validate()
    with Interruption() as interruption:
        devices.keep_freed_memory()
        accelerator = devices.create_accelerator(config, trackers.choose_trackers(config.tracker))
        accelerator.print(devices.describe(accelerator))
        folder = find_folder(config, accelerator)
        session = prepare(folder.adopt_choices(config) if folder else config, accelerator)
        config = session.config
        if folder is not None:
            resume(session, folder)
        elif config.resume:
            accelerator.print('--resume auto: no checkpoint of this name yet, so this run is its start')
        is_new, folder = folder is None, folder or make_folder(config, accelerator)
        with folder.kept_if_useful():
            if is_new:
                begin(session, folder)
            find_teacher(session, folder)
            with shared_writing(accelerator, 'the run has not begun'):
                if accelerator.is_main_process:
                    facts = describe_run(config, session.sources, len(session.order.indices))
                    facts['parameters'] = networks.count_parameters(session.network)
                    folder.write_run({**facts, **session.base, 'machine': devices.describe(accelerator)})
            accelerator.print(f'run folder {folder.path}')
            with trackers.tracked(accelerator, config, folder, session.step):
                if session.features and session.progress.epoch < session.epochs:
                    fill_features(session, folder, interruption)
                train(session, folder, interruption)
            if session.features and accelerator.is_main_process:
                shutil.rmtree(folder.features, ignore_errors=True)
            measure_earlier(session, folder)
            report(session, folder)
    best = session.progress.best()
    assert best is not None, 'the last epoch is always evaluated'
    results = {**{name: best[f'val_{name}'] for name in session.task.results}, 'epoch': best['epoch']}
    written = str(folder.path / 'report.html') if config.report else None
    told = earlier.summary(session.earlier) if session.earlier else {}
    return {**results, **told, 'seconds': session.progress.elapsed_s, 'run': str(folder.path), 'report': written}


def fill_features(session: Session, folder: RunFolder, interruption: Interruption) -> None:
    """Compute what the frozen part gives; what is whole when a signal stops it is not computed again."""
    assert session.features is not None
    if not folder.state.exists():  # so that there is something to go on with
        save(session, folder)
    start = time.monotonic()
    if not session.features.fill(folder.features, lambda: interruption.is_requested):
        raise InterruptedRun(f'stopped; go on with: --resume {folder.path}')
    session.progress.elapsed_s += time.monotonic() - start


def train(session: Session, folder: RunFolder, interruption: Interruption) -> None:
    """Train the epochs that are left; save after them, and wherever a signal stops it."""
    progress, accelerator = session.progress, session.accelerator
    session.schedule.step_update(session.step)
    is_shown = accelerator.is_main_process
    live_line = LiveLine(is_shown, session.epochs, session.order.updates, session.order.update_size, progress)
    session.pace.restart()
    try:
        while progress.epoch < session.epochs:
            stops = train_epoch(session, folder, live_line, interruption)
            if not stops:
                try:
                    finish_epoch(session, folder, live_line, interruption)
                except InterruptedRun:
                    stops = True
            stops = stops or interruption.is_agreed(accelerator, may_wait=True)
            is_end = stops or progress.epoch == session.epochs
            save(session, folder, is_due=is_end or session.pace.is_due_after_epoch())
            if stops and progress.epoch < session.epochs:
                if not sharding.can_be_resumed(accelerator):
                    raise InterruptedRun(f'stopped; the weights of finished epochs are in {folder.path}')
                raise InterruptedRun(f'stopped and saved; go on with: --resume {folder.path}')
    finally:
        live_line.close()


def train_epoch(session: Session, folder: RunFolder, live_line: LiveLine, interruption: Interruption) -> bool:
    """Train what is left of the epoch.

    Returns:
        Whether a signal asks to stop.
    """
    accelerator, progress = session.accelerator, session.progress
    session.model.train()
    session.order.seek(progress.epoch, progress.update)
    session.curves.begin_epoch(session.step, session.tally)
    stops, done = False, progress.update * session.config.grad_accum_steps
    progress.start_clock()
    for number, (batch, targets, indices) in enumerate(session.loaders['train'], done):
        train_batch(session, number, batch, targets, indices)
        if not accelerator.sync_gradients:
            continue
        progress.update += 1
        session.schedule.step_update(session.step)
        if session.ema is not None:
            session.ema.update(session.network, step=session.step)
        live_line.advance()
        is_look = progress.update % LOOK_EVERY == 0 or progress.update == session.order.updates
        # Processes on CPUs do not run ahead of a device, so they lose nothing by waiting for each other.
        may_wait = is_look or accelerator.device.type == 'cpu'
        stops = interruption.is_agreed(accelerator, may_wait)
        is_due = session.pace.is_due(accelerator, session.step, may_wait)
        if is_look:
            live_line.show(progress.epoch, progress.update, session.tally)
            rates = trackers.group_rates(session.schedule, session.step)
            session.curves.add_step(session.step, session.tally, rates)
        if is_look or stops or is_due:
            refuse_faults(session, folder)
        if stops:
            break
        if is_due:
            progress.stop_clock()
            save(session, folder)
            progress.start_clock()
    progress.stop_clock()
    return stops


def train_batch(session: Session, number: int, batch: Any, targets: Tensor, indices: Tensor) -> None:
    """Compute the gradients of one batch, and after the last one of an update change the weights by them.

    Args:
        session: Of this process.
        number: Batches before it in the epoch.
        batch: Pixels or features.
        targets: As the task encodes them.
        indices: Of the images, shape (N,).
    """
    config, accelerator, progress = session.config, session.accelerator, session.progress
    model, optimizer, watch = session.model, session.optimizer, session.watch
    assert config.block_loss is not None, 'the configuration is resolved'
    session.bad_images['train'].add(targets, indices)
    is_read = is_readable(targets)
    inputs, targets = session.augment(session.inputs(batch), targets, progress.epoch, number)
    watch.begin_batch()
    with accelerator.accumulate(model):
        output = model(*inputs)
        loss = objective(output, targets, config.smoothing, config.block_loss, session.task)
        if session.teacher is not None:
            wanted = session.teacher.answer(*inputs)
            loss = loss + config.lwf * distil(kept_answers(output), wanted, heads_of(session.network), is_read)
        accelerator.backward(loss)
        watch.note(progress.epoch + 1, progress.update + 1, loss, indices)
        if accelerator.sync_gradients and watch.leaves_out(accelerator):
            progress.skipped += 1
        else:
            if accelerator.sync_gradients and session.start is not None:
                session.start.pull(accelerator.scaler)
            if accelerator.sync_gradients and config.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
        optimizer.zero_grad()
    loss, targets = watch.counted(loss, session.task.countable(targets))
    session.tally.add(loss, split_output(output)[0], targets)


def finish_epoch(session: Session, folder: RunFolder, live_line: LiveLine, interruption: Interruption) -> None:
    """Evaluate, then write the epoch's metrics and weights.

    Raises:
        InterruptedRun: A signal asked to stop before the end of the evaluation; the epoch is not finished then.
    """
    config, progress, accelerator = session.config, session.progress, session.accelerator
    start = time.monotonic()
    train_metrics = session.tally.read(accelerator)
    val_metrics: dict[str, float] = {}
    if (progress.epoch + 1) % config.eval_every == 0 or progress.epoch + 1 == session.epochs:
        batches = interruption.stoppable(session.loaders['val'], accelerator)
        model = session.model if session.ema is None else session.ema.module
        with BlockNorms(session.evaluated) as norms, BlockVoices(session.evaluated) as voices:
            bad_images, task = session.bad_images['val'], session.task
            val_metrics = evaluate(accelerator, model, batches, bad_images, session.inputs, norms, voices, task)
        if config.bad_images == 'stop':
            session.bad_images['val'].refuse(accelerator)
    classes = session.sources['train'].classes
    if len(classes) < 5:
        val_metrics.pop('top5', None)
    progress.epoch_s += time.monotonic() - start
    images = session.order.updates * session.order.update_size
    rates = {f'lr_{name}': rate for name, rate in trackers.group_rates(session.schedule, session.step).items()}
    scales = {f'scale_{name}': scale for name, scale in block_scales(session.network).items()}
    of_blocks = {name: value for name, value in val_metrics.items() if name not in session.task.measured}
    row = progress.finish_epoch(
        {name: train_metrics[name] for name in session.tally.told},
        {name: val_metrics.get(name) for name in session.task.measured},
        images,
        {**rates, **of_blocks, **scales},
    )
    session.curves.add_epoch(session.step, row)
    session.tally = session.task.training_tally(accelerator.device)
    weights = plain_weights(session)
    with shared_writing(accelerator, f'the checkpoints in {folder.state} are as before'):
        if accelerator.is_main_process:
            live_line.write(describe_epoch(row, session.epochs))
            is_best = progress.best() is row
            folder.write_weights(session.evaluated, weights, classes, session.input_format, config, is_best)
            folder.write_metrics(progress.history)
    if change(session) and accelerator.is_main_process:
        live_line.write(networks.describe(config, session.network, session.thawing.regime))


def measure_earlier(session: Session, folder: RunFolder) -> None:
    """Measure the earlier tasks by the best weights, as they lie on the disk, and write what became of them."""
    accelerator = session.accelerator
    [is_current] = broadcast_object_list([accelerator.is_main_process and folder.has_current('earlier.csv')])
    if not session.earlier or is_current:
        return
    session.earlier = measure_after(session.config, accelerator, session.earlier, folder.path / 'best')
    if accelerator.is_main_process:
        folder.write_earlier(session.earlier)
    accelerator.print(earlier.describe(session.earlier))
    accelerator.wait_for_everyone()


def report(session: Session, folder: RunFolder) -> None:
    """Measure the best weights once more, as they lie on the disk, and write what was seen."""
    accelerator = session.accelerator
    # The main process looks, for all of them: they must agree, and shared disks are not the same everywhere at once.
    [is_current] = broadcast_object_list([accelerator.is_main_process and folder.has_current('report.html')])
    if not session.config.report or is_current:
        return
    predictions = evaluation.predict_best(
        session.config, accelerator, folder, session.sources['val'], session.input_format, session.normalize
    )
    if accelerator.is_main_process:
        folder.write_predictions(predictions.to_csv(session.sources['val']))
        write_report(folder, predictions, session.sources['val'])
    accelerator.wait_for_everyone()


def cli(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0, `EXIT_USER_ERROR`, `EXIT_AT_ONCE` or `EXIT_INTERRUPTED`.
    """
    config = tyro.cli(Config, prog='train.py', description=__doc__, args=argv)
    try:
        with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
            summary = main(config)
    except Fault as error:
        if PartialState().is_main_process:
            print(f'train.py: error: {error}', file=sys.stderr)
        return EXIT_USER_ERROR
    except (ValueError, OSError) as error:
        print(f'train.py: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print('train.py: stopped at once, without saving', file=sys.stderr)
        return EXIT_AT_ONCE
    except InterruptedRun as interrupted:
        PartialState().print(interrupted, file=sys.stderr if config.json else sys.stdout)
        return EXIT_INTERRUPTED
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    PartialState().print(json.dumps(finite(summary)) if config.json else describe_result(summary))
    return 0


def finite(summary: dict[str, Any]) -> dict[str, Any]:
    """Put None in the place of numbers that JSON has no word for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in summary.items()
    }


def describe_result(summary: dict[str, Any]) -> str:
    """Write what `main` returns as one reads it."""
    written = f'; report: {summary["report"]}' if summary['report'] else ''
    if 'run' not in summary:
        return f'{phrase(summary)} on {summary["images"]} images in {summary["seconds"]:.1f} s{written}'
    reached = phrase({name: value for name, value in summary.items() if name != 'loss'})
    return (
        f'best {reached} (epoch {summary["epoch"]}) after {summary["seconds"]:.0f} s, '
        f'in {summary["run"]}{written}; to load it:\n'
        f"import timm, timm_devnet; model = timm.create_model('local-dir:{summary['run']}/best', pretrained=True)"
    )


if __name__ == '__main__':
    sys.exit(cli())
