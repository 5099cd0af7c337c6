"""Fine-tune a grown network on images: `accelerate launch train.py` or `python train.py`; `--help` lists options."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.utils.data import DataLoader

import timm_devnet
from training import devices, networks, sharding
from training.checkpoints import load_checkpoint, save_checkpoint
from training.config import Config
from training.data import EpochOrder, InputFormat, Normalize, create_loaders
from training.interruption import EXIT_INTERRUPTED, InterruptedRun, Interruption
from training.metrics import BadImages, Tally, evaluate, objective, split_output
from training.progress import LiveLine, Progress, describe_epoch
from training.run_folder import RunFolder, describe_run, find_folder, make_folder
from training.schedule import create_optimizer, create_schedule
from training.sources import Source, load_sources

EXIT_USER_ERROR = 2
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
    normalize: Normalize


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
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(memory_format=sharding.weights_format(accelerator, config))
    train_loader, val_loader, order = create_loaders(config, sources, input_format, accelerator.num_processes)
    optimizer = create_optimizer(config, groups)
    accelerator.print(f'{networks.describe(config, network)}, weights from {origin}')
    accelerator.print(order.describe(sources, input_format))
    set_seed(config.seed, device_specific=True)  # from here on each process has its own dropout
    answering = networks.BlockAnswers(network) if config.block_loss else network
    model, prepared_optimizer, train_loader, val_loader = accelerator.prepare(
        sharding.autocast(accelerator, answering), optimizer, train_loader, val_loader
    )
    sharding.check_prepared(accelerator, network, config)
    sharding.share_buffers(accelerator, model)
    return Session(
        config=config,
        accelerator=accelerator,
        sources=sources,
        input_format=input_format,
        network=network,
        model=model,
        optimizer=prepared_optimizer,
        # Made of what was prepared: DeepSpeed may put an optimizer of its own in the place of ours.
        schedule=create_schedule(config, prepared_optimizer, order.updates),
        loaders={'train': train_loader, 'val': val_loader},
        order=order,
        epochs=config.epochs,
        bad_images={split: BadImages(split, source, accelerator.device) for split, source in sources.items()},
        tally=Tally(accelerator.device),
        progress=Progress(),
        normalize=Normalize(input_format.mean, input_format.std, memory_format).to(accelerator.device),
    )


def resume(session: Session, folder: RunFolder) -> None:
    """Go on with a run, under the same options and on the same data, from its newest checkpoint."""
    folder.refuse_changes(describe_run(session.config, session.sources, len(session.order.indices)))
    session.progress = load_checkpoint(
        folder.state, session.accelerator, session.network, session.optimizer, session.tally
    )
    place = session.progress
    session.accelerator.print(f'going on after epoch {place.epoch} and {place.update} updates of the next')


def train(session: Session, folder: RunFolder, interruption: Interruption) -> None:
    """Train the epochs that are left; save after each, and wherever a signal stops it."""
    progress, updates = session.progress, session.order.updates
    session.schedule.step_update(progress.epoch * updates + progress.update)
    is_shown = session.accelerator.is_main_process
    live_line = LiveLine(is_shown, session.epochs, updates, session.order.update_size, progress)
    try:
        while progress.epoch < session.epochs:
            is_finished = train_epoch(session, live_line, interruption)
            if is_finished:
                finish_epoch(session, folder, live_line)
            save_bad_images(session, folder)
            if sharding.can_be_resumed(session.accelerator):
                save_checkpoint(
                    folder.state, session.accelerator, session.network, session.optimizer, progress, session.tally
                )
            asked_to_stop = interruption.is_agreed(session.accelerator, may_wait=True)
            if (asked_to_stop or not is_finished) and progress.epoch < session.epochs:
                if not sharding.can_be_resumed(session.accelerator):
                    raise InterruptedRun(f'stopped; the weights of finished epochs are in {folder.path}')
                raise InterruptedRun(f'stopped and saved; go on with: --resume {folder.path}')
    finally:
        live_line.close()


def train_epoch(session: Session, live_line: LiveLine, interruption: Interruption) -> bool:
    """Train what is left of the epoch.

    Returns:
        Whether the epoch is finished; not if a signal stopped it.
    """
    config, accelerator, progress = session.config, session.accelerator, session.progress
    model, optimizer = session.model, session.optimizer
    model.train()
    session.order.seek(progress.epoch, progress.update)
    start = time.monotonic()
    for pixels, targets, indices in session.loaders['train']:
        with accelerator.accumulate(model):
            output = model(session.normalize(pixels))
            loss = objective(output, targets, config.smoothing, config.block_loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        session.tally.add(loss, split_output(output)[0], targets)
        session.bad_images['train'].add(targets, indices)
        if not accelerator.sync_gradients:
            continue
        progress.update += 1
        session.schedule.step_update(progress.epoch * session.order.updates + progress.update)
        live_line.advance()
        is_look = progress.update % LOOK_EVERY == 0 or progress.update == session.order.updates
        stops = interruption.is_agreed(accelerator, may_wait=is_look)
        if is_look:
            live_line.show(progress.epoch, progress.update, session.tally)
        if (is_look or stops) and config.bad_images == 'stop':
            session.bad_images['train'].refuse(accelerator)
        if stops:
            break
    progress.epoch_s += time.monotonic() - start
    return progress.update == session.order.updates


def finish_epoch(session: Session, folder: RunFolder, live_line: LiveLine) -> None:
    """Evaluate, then write the epoch's metrics and weights."""
    config, progress, accelerator = session.config, session.progress, session.accelerator
    start = time.monotonic()
    train_metrics = session.tally.read(accelerator)
    val_metrics: dict[str, float] = {}
    if (progress.epoch + 1) % config.eval_every == 0 or progress.epoch + 1 == session.epochs:
        val_metrics = evaluate(
            accelerator, session.model, session.loaders['val'], session.bad_images['val'], session.normalize
        )
        if config.bad_images == 'stop':
            session.bad_images['val'].refuse(accelerator)
    classes = session.sources['train'].classes
    if len(classes) < 5:
        val_metrics.pop('top5', None)
    progress.epoch_s += time.monotonic() - start
    images = session.order.updates * session.order.update_size
    row = progress.finish_epoch(train_metrics, val_metrics, images)
    session.tally = Tally(accelerator.device)
    weights = sharding.whole_weights(accelerator, session.model, session.network)
    if accelerator.is_main_process:
        live_line.write(describe_epoch(row, session.epochs))
        for name in ('best', 'last') if progress.best() is row else ('last',):
            folder.write_weights(name, session.network, weights, classes, session.input_format, config)
        folder.write_metrics(progress.history)


def save_bad_images(session: Session, folder: RunFolder) -> None:
    """List the images that could not be read, if there were any."""
    found = [name for bad in session.bad_images.values() for name in bad.names(session.accelerator)]
    if found and session.accelerator.is_main_process:
        folder.add_bad_images(found)


def cli(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0, `EXIT_USER_ERROR` or `EXIT_INTERRUPTED`.
    """
    config = tyro.cli(Config, prog='train.py', description=__doc__, args=argv)
    try:
        summary = main(config)
    except (ValueError, OSError) as error:
        print(f'train.py: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
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
