"""Fine-tune a grown network on images: `accelerate launch train.py` or `python train.py`; `--help` lists options."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

import timm_devnet
from training import devices, networks
from training.checkpoints import CheckpointPace, RunState, Stateful, load_checkpoint, save_checkpoint
from training.config import Config
from training.data import EpochOrder, InputFormat, create_loaders
from training.faults import Fault, shared_writing
from training.interruption import EXIT_INTERRUPTED, InterruptedRun, Interruption
from training.metrics import BadImages, Tally, evaluate, objective, split_output
from training.nonfinite import LossWatch
from training.progress import LiveLine, Progress, describe_epoch
from training.run_folder import RunFolder, describe_run, find_folder, make_folder
from training.schedule import create_optimizer, create_schedule
from training.sources import Source, load_sources

EXIT_USER_ERROR = 2
EXIT_AT_ONCE = 128 + signal.SIGINT  # as shells have it
# Updates between two looks at the device: for the live line, and for several processes to agree on stopping.
LOOK_EVERY = 10


@dataclass
class Session:
    """What one process holds while it trains."""

    config: Config
    accelerator: Accelerator
    sources: dict[str, Source]
    input_format: InputFormat
    network: nn.Module
    """As timm made it."""
    model: nn.Module
    """The same as prepared: perhaps wrapped by `BlockAnswers` and DDP."""
    optimizer: AcceleratedOptimizer
    schedule: Scheduler
    loaders: dict[str, DataLoader]
    order: EpochOrder
    epochs: int
    bad_images: dict[str, BadImages]
    tally: Tally
    progress: Progress
    watch: LossWatch
    pace: CheckpointPace
    further: Mapping[str, Stateful] = field(default_factory=dict)
    """What else is saved in checkpoints, by name."""

    @property
    def state(self) -> RunState:
        """What a checkpoint holds."""
        return RunState(self.network, self.optimizer, self.order, self.progress, self.tally, self.further)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.channels_last else torch.contiguous_format


def main(config: Config) -> dict[str, Any]:
    """Run one training from its configuration to its run folder.

    Returns:
        top1, top5 (None below five classes) and loss of the best epoch, epoch, seconds, run (the folder's path).

    Raises:
        ValueError: The configuration, the data or the weights do not fit; nothing is left behind.
        InterruptedRun: A signal asked to stop; the run is saved.
    """
    config = config.resolved()
    config.validate()
    with Interruption() as interruption:
        devices.keep_freed_memory()
        accelerator = devices.create_accelerator(config)
        accelerator.print(devices.describe(accelerator))
        session = prepare(config, accelerator)
        folder = find_folder(config)
        if folder is not None:
            resume(session, folder)
        elif config.resume:
            accelerator.print('--resume auto: no checkpoint of this name yet, so this run is its start')
        folder = folder or make_folder(config, accelerator)
        with folder.kept_if_useful():
            with shared_writing(accelerator, 'the run has not begun'):
                if accelerator.is_main_process:
                    facts = describe_run(config, session.sources, len(session.order.indices))
                    folder.write_run({**facts, 'machine': devices.describe(accelerator)})
            accelerator.print(f'run folder {folder.path}')
            train(session, folder, interruption)
    best = session.progress.best()
    assert best is not None, 'the last epoch is always evaluated'
    results = {'top1': best['val_top1'], 'top5': best['val_top5'], 'loss': best['val_loss'], 'epoch': best['epoch']}
    return {**results, 'seconds': session.progress.elapsed_s, 'run': str(folder.path)}


def prepare(config: Config, accelerator: Accelerator) -> Session:
    """Make data, network, optimizer and schedule, and hand them to accelerate."""
    assert config.epochs is not None, 'the configuration is resolved'
    sources = load_sources(config)
    set_seed(config.seed)
    network, origin = networks.build_network(config, networks.count_classes(config, sources['train'].classes))
    input_format = networks.input_format(network, config.img_size)
    networks.check_img_size(network, input_format.img_size)
    groups = timm_devnet.parameter_groups(network, config.regime, config.lr, config.weight_decay, config.new_lr_mult)
    network = network.to(memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    train_loader, val_loader, order = create_loaders(config, sources, input_format, accelerator.num_processes)
    optimizer = create_optimizer(config, groups)
    schedule = create_schedule(config, optimizer, order.updates)
    accelerator.print(f'{networks.describe(config, network)}, weights from {origin}')
    accelerator.print(order.describe(sources, input_format))
    set_seed(config.seed, device_specific=True)  # from here on each process has its own dropout
    model, prepared_optimizer, train_loader, val_loader = accelerator.prepare(
        networks.BlockAnswers(network) if config.block_loss else network, optimizer, train_loader, val_loader
    )
    devices.settle_gradient_buckets(
        accelerator,
        model,
        torch.zeros(2, 3, input_format.img_size, input_format.img_size, device=accelerator.device),
        lambda output: objective(output, torch.zeros(2, dtype=torch.long, device=accelerator.device), 0.0, 1.0),
    )
    return Session(
        config=config,
        accelerator=accelerator,
        sources=sources,
        input_format=input_format,
        network=network,
        model=model,
        optimizer=prepared_optimizer,
        schedule=schedule,
        loaders={'train': train_loader, 'val': val_loader},
        order=order,
        epochs=config.epochs,
        bad_images={split: BadImages(split, source, accelerator.device) for split, source in sources.items()},
        tally=Tally(accelerator.device),
        progress=Progress(),
        watch=LossWatch(network, sources['train'], skips=config.nonfinite == 'skip'),
        pace=CheckpointPace(config.checkpoint_every),
    )


def resume(session: Session, folder: RunFolder) -> None:
    """Go on with a run, under the same options and on the same data, from its newest checkpoint."""
    folder.refuse_changes(describe_run(session.config, session.sources, len(session.order.indices)))
    session.progress = load_checkpoint(folder.state, session.accelerator, session.state, session.config)


def train(session: Session, folder: RunFolder, interruption: Interruption) -> None:
    """Train the epochs that are left; save after each, and wherever a signal stops it."""
    progress, updates, accelerator = session.progress, session.order.updates, session.accelerator
    session.schedule.step_update(progress.epoch * updates + progress.update)
    is_shown = accelerator.is_main_process
    live_line = LiveLine(is_shown, session.epochs, updates, session.order.update_size, progress)
    session.pace.restart()
    try:
        while progress.epoch < session.epochs:
            stops = train_epoch(session, folder, live_line, interruption)
            if not stops:
                try:
                    finish_epoch(session, folder, live_line, interruption)
                except InterruptedRun:
                    stops = True
            save(session, folder)
            stops = stops or interruption.is_agreed(accelerator, may_wait=True)
            if stops and progress.epoch < session.epochs:
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
    start, stops = time.monotonic(), False
    for images, targets, indices in session.loaders['train']:
        train_batch(session, images, targets, indices)
        if not accelerator.sync_gradients:
            continue
        progress.update += 1
        updates_done = progress.epoch * session.order.updates + progress.update
        session.schedule.step_update(updates_done)
        live_line.advance()
        is_look = progress.update % LOOK_EVERY == 0 or progress.update == session.order.updates
        # Processes on CPUs do not run ahead of a device, so they lose nothing by waiting for each other.
        may_wait = is_look or accelerator.device.type == 'cpu'
        stops = interruption.is_agreed(accelerator, may_wait)
        is_due = session.pace.is_due(accelerator, updates_done, may_wait)
        if is_look:
            live_line.show(progress.epoch, progress.update, session.tally)
        if is_look or stops or is_due:
            refuse_faults(session, folder)
        if stops:
            break
        if is_due:
            progress.epoch_s += time.monotonic() - start
            save(session, folder)
            start = time.monotonic()
    progress.epoch_s += time.monotonic() - start
    return stops


def train_batch(session: Session, images: Tensor, targets: Tensor, indices: Tensor) -> None:
    """Compute the gradients of one batch, and after the last one of an update change the weights by them."""
    config, accelerator, progress = session.config, session.accelerator, session.progress
    model, optimizer, watch = session.model, session.optimizer, session.watch
    watch.begin_batch()
    with accelerator.accumulate(model):
        output = model(images.to(memory_format=session.memory_format))
        loss = objective(output, targets, config.smoothing, config.block_loss)
        accelerator.backward(loss)
        watch.note(progress.epoch + 1, progress.update + 1, loss, indices)
        if accelerator.sync_gradients and watch.leaves_out(accelerator):
            progress.skipped += 1
        else:
            if accelerator.sync_gradients and config.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
        optimizer.zero_grad()
    session.bad_images['train'].add(targets, indices)
    loss, targets = watch.counted(loss, targets)
    session.tally.add(loss, split_output(output)[0], targets)


def refuse_faults(session: Session, folder: RunFolder, is_saving: bool = False) -> None:
    """Look whether losses were finite and images readable; this waits for the device.

    Args:
        session: Of this process.
        folder: Takes the list of images whose loss was not finite.
        is_saving: Whether what would be saved must be finite too.

    Raises:
        Fault: A loss or what would be saved is not finite.
        ValueError: An image could not be read.
    """
    accelerator, watch = session.accelerator, session.watch
    found = watch.look(accelerator)
    poisoned = watch.look_at_weights(accelerator) if is_saving else []
    if found or poisoned:
        with shared_writing(accelerator, 'and a loss is not finite'):
            if accelerator.is_main_process:
                folder.add_nonfinite([*found, *poisoned])
        if poisoned or watch.is_hopeless():
            place = (found or poisoned)[0].splitlines()[0]
            raise Fault(folder.describe_nonfinite(place, is_skipping=watch.skips))
    if session.config.bad_images == 'stop':
        session.bad_images['train'].refuse(accelerator)


def save(session: Session, folder: RunFolder) -> None:
    """Save a checkpoint, unless what would be saved is broken."""
    refuse_faults(session, folder, is_saving=True)
    save_bad_images(session, folder)
    save_checkpoint(folder.state, session.accelerator, session.state, session.config.keep_checkpoints)
    session.pace.restart()


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
        val_metrics = evaluate(accelerator, session.model, batches, session.bad_images['val'], session.memory_format)
        if config.bad_images == 'stop':
            session.bad_images['val'].refuse(accelerator)
    classes = session.sources['train'].classes
    if len(classes) < 5:
        val_metrics.pop('top5', None)
    progress.epoch_s += time.monotonic() - start
    images = session.order.updates * session.order.update_size
    row = progress.finish_epoch(train_metrics, val_metrics, images)
    session.tally = Tally(accelerator.device)
    with shared_writing(accelerator, f'the checkpoints in {folder.state} are as before'):
        if accelerator.is_main_process:
            live_line.write(describe_epoch(row, session.epochs))
            for name in ('best', 'last') if progress.best() is row else ('last',):
                folder.write_weights(name, session.network, classes, session.input_format, config)
            folder.write_metrics(progress.history)


def save_bad_images(session: Session, folder: RunFolder) -> None:
    """List the images that could not be read, if there were any."""
    found = [name for bad in session.bad_images.values() for name in bad.names(session.accelerator)]
    if found:
        with shared_writing(session.accelerator, f'the checkpoints in {folder.state} are as before'):
            if session.accelerator.is_main_process:
                folder.add_bad_images(found)


def cli(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0, `EXIT_USER_ERROR`, `EXIT_AT_ONCE` or `EXIT_INTERRUPTED`.
    """
    config = tyro.cli(Config, prog='train.py', description=__doc__, args=argv)
    try:
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
        PartialState().print(interrupted)
        return EXIT_INTERRUPTED
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    top5 = '' if summary['top5'] is None else f', top-5 {summary["top5"]:.2f} %'
    PartialState().print(
        f'best top-1 {summary["top1"]:.2f} %{top5} (epoch {summary["epoch"]}) after {summary["seconds"]:.0f} s, '
        f'in {summary["run"]}; to load it:\n'
        f"import timm, timm_devnet; model = timm.create_model('local-dir:{summary['run']}/best', pretrained=True)"
    )
    return 0


if __name__ == '__main__':
    sys.exit(cli())
