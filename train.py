"""Fine-tune a grown network on images: `accelerate launch train.py` or `python train.py`; `--help` lists options."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list, set_seed
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training import devices, evaluation, networks, sharding, trackers
from training.augmentation import BatchAugmentation, greatest_part
from training.blocks import BlockNorms, block_scales
from training.checkpoints import load_checkpoint, save_checkpoint
from training.config import Config
from training.data import InputFormat, Normalize, create_images, create_loaders
from training.features import Features
from training.image_cache import open_cache
from training.interruption import EXIT_INTERRUPTED, InterruptedRun, Interruption
from training.metrics import BadImages, Tally, evaluate, objective, split_output
from training.order import EpochOrder, create_order
from training.progress import LiveLine, Progress, describe_epoch
from training.report import write_report
from training.run_folder import RunFolder, describe_run, find_folder, make_folder
from training.schedule import create_groups, create_optimizer, create_schedule
from training.sources import Source, load_sources
from training.thaw import Thawing, check_thaws
from training.tuning import LAYOUTS, choose_memory_format

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
    features: Features | None
    """What the frozen part gives, if it is computed once only."""
    augment: BatchAugmentation
    thawing: Thawing
    ema: ModelEmaV3 | None
    """Moving average of the network's weights."""
    curves: trackers.Curves

    @property
    def evaluated(self) -> nn.Module:
        """What is measured and kept: the network as timm made it, or its moving average."""
        return self.network if self.ema is None else self.ema.module

    @property
    def further(self) -> dict[str, Any]:
        """What else has a state that a checkpoint keeps."""
        return {} if self.ema is None else {'ema': self.ema}

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Make what `model` reads of what a loader gives: pixels (N, H, W, 3), or a list of features."""
        if self.features is None:
            return (self.normalize(batch),)
        return self.features.arrange(batch)

    @property
    def step(self) -> int:
        """Updates made since the run began."""
        return self.progress.epoch * self.order.updates + self.progress.update


def main(config: Config) -> dict[str, Any]:
    """Run one training from its configuration to its run folder.

    Returns:
        top1, top5 (None below five classes) and loss of the best epoch, epoch, seconds, run (the folder's path); with
        --eval-only what `training.evaluation.evaluate_only` returns.

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
        folder = find_folder(config)
        session = prepare(folder.adopt_choices(config) if folder else config, accelerator)
        config = session.config
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
            with trackers.tracked(accelerator, config, folder, session.step):
                if session.features and session.progress.epoch < session.epochs:
                    fill_features(session, folder, interruption)
                train(session, folder, interruption)
            if session.features and accelerator.is_main_process:
                shutil.rmtree(folder.features, ignore_errors=True)
            report(session, folder)
    best = session.progress.best()
    assert best is not None, 'the last epoch is always evaluated'
    results = {'top1': best['val_top1'], 'top5': best['val_top5'], 'loss': best['val_loss'], 'epoch': best['epoch']}
    return {**results, 'seconds': session.progress.elapsed_s, 'run': str(folder.path)}


def prepare(config: Config, accelerator: Accelerator) -> Session:
    """Make data, network, optimizer and schedule, and hand them to accelerate."""
    sources = load_sources(config, open_cache(config, accelerator.print))
    set_seed(config.seed)
    num_classes = networks.count_classes(config, sources['train'].classes)
    network, origin = networks.build_network(config, num_classes)
    input_format = networks.input_format(network, config.img_size)
    networks.check_img_size(network, input_format.img_size)
    check_thaws(config, network, accelerator)
    groups = create_groups(config, network, config.regime)
    learner = networks.BlockAnswers(network) if config.block_loss else network
    config = dataclasses.replace(
        config, memory_format=choose_memory_format(config, learner, input_format.img_size, accelerator)
    )
    assert config.memory_format is not None
    memory_format = LAYOUTS[config.memory_format]
    network = network.to(accelerator.device).to(memory_format=sharding.weights_format(accelerator, memory_format))
    normalize = Normalize(input_format.mean, input_format.std, memory_format).to(accelerator.device)
    images = create_images(config, sources, input_format)
    order = create_order(config, sources, accelerator.num_processes)
    optimizer = create_optimizer(config, groups, sharding.is_spread(accelerator))
    accelerator.print(f'{networks.describe(config, network, config.regime)}, weights from {origin}')
    accelerator.print(order.describe(sources, input_format))
    features = None
    if config.cache_features:
        features, learner = Features.create(config, learner, images, order.indices, normalize, accelerator)
    loaders = create_loaders(config, features.views if features else images, order)
    ema = ModelEmaV3(network, config.model_ema_decay, use_warmup=config.model_ema_warmup) if config.model_ema else None
    set_seed(config.seed, device_specific=True)  # from here on each process has its own dropout
    model, prepared_optimizer, loaders['train'], loaders['val'] = accelerator.prepare(
        sharding.autocast(accelerator, learner), optimizer, loaders['train'], loaders['val']
    )
    assert config.epochs is not None, 'the configuration is resolved'
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
        loaders=loaders,
        order=order,
        epochs=config.epochs,
        bad_images={split: BadImages(split, source, accelerator.device) for split, source in sources.items()},
        tally=Tally(accelerator.device),
        progress=Progress(),
        normalize=normalize,
        features=features,
        augment=BatchAugmentation(config, num_classes, accelerator.process_index),
        thawing=Thawing(config, network, prepared_optimizer),
        ema=ema,
        curves=trackers.Curves(accelerator, order.update_size),
    )


def resume(session: Session, folder: RunFolder) -> None:
    """Go on with a run, under the same options and on the same data, from its newest checkpoint."""
    folder.refuse_changes(describe_run(session.config, session.sources, len(session.order.indices)))
    session.progress = load_checkpoint(
        folder.state, session.accelerator, session.network, session.thawing, session.tally, session.further
    )
    place = session.progress
    if session.thawing.passed:
        follow_thaw(session)
    session.accelerator.print(f'going on after epoch {place.epoch} and {place.update} updates of the next')


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
    """Train the epochs that are left; save after each, and wherever a signal stops it."""
    progress, updates = session.progress, session.order.updates
    session.schedule.step_update(session.step)
    is_shown = session.accelerator.is_main_process
    live_line = LiveLine(is_shown, session.epochs, updates, session.order.update_size, progress)
    try:
        while progress.epoch < session.epochs:
            is_finished = train_epoch(session, live_line, interruption)
            if is_finished:
                finish_epoch(session, folder, live_line)
            save_bad_images(session, folder)
            save(session, folder)
            asked_to_stop = interruption.is_agreed(session.accelerator, may_wait=True)
            if (asked_to_stop or not is_finished) and progress.epoch < session.epochs:
                if not sharding.can_be_resumed(session.accelerator):
                    raise InterruptedRun(f'stopped; the weights of finished epochs are in {folder.path}')
                raise InterruptedRun(f'stopped and saved; go on with: --resume {folder.path}')
    finally:
        live_line.close()


def save(session: Session, folder: RunFolder) -> None:
    """Save a checkpoint, if one would hold the whole run."""
    if not sharding.can_be_resumed(session.accelerator):
        return
    save_checkpoint(
        folder.state,
        session.accelerator,
        session.network,
        session.thawing,
        session.progress,
        session.tally,
        session.further,
    )


def train_epoch(session: Session, live_line: LiveLine, interruption: Interruption) -> bool:
    """Train what is left of the epoch.

    Returns:
        Whether the epoch is finished; not if a signal stopped it.
    """
    config, accelerator, progress = session.config, session.accelerator, session.progress
    model, optimizer = session.model, session.optimizer
    model.train()
    session.order.seek(progress.epoch, progress.update)
    session.curves.begin_epoch(session.step, session.tally)
    start = time.monotonic()
    done = progress.update * config.grad_accum_steps
    for number, (batch, targets, indices) in enumerate(session.loaders['train'], done):
        session.bad_images['train'].add(targets, indices)
        inputs, targets = session.augment(session.inputs(batch), targets, progress.epoch, number)
        with accelerator.accumulate(model):
            output = model(*inputs)
            loss = objective(output, targets, config.smoothing, config.block_loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        session.tally.add(loss, split_output(output)[0], greatest_part(targets))
        if not accelerator.sync_gradients:
            continue
        progress.update += 1
        session.schedule.step_update(session.step)
        if session.ema is not None:
            session.ema.update(session.network, step=session.step)
        live_line.advance()
        is_look = progress.update % LOOK_EVERY == 0 or progress.update == session.order.updates
        stops = interruption.is_agreed(accelerator, may_wait=is_look)
        if is_look:
            live_line.show(progress.epoch, progress.update, session.tally)
            rates = trackers.group_rates(session.schedule, session.step)
            session.curves.add_step(session.step, session.tally, rates)
        if (is_look or stops) and config.bad_images == 'stop':
            session.bad_images['train'].refuse(accelerator)
        if stops:
            break
    progress.train_s += time.monotonic() - start
    progress.epoch_s += time.monotonic() - start
    return progress.update == session.order.updates


def finish_epoch(session: Session, folder: RunFolder, live_line: LiveLine) -> None:
    """Evaluate, then write the epoch's metrics and weights."""
    config, progress, accelerator = session.config, session.progress, session.accelerator
    start = time.monotonic()
    train_metrics = session.tally.read(accelerator)
    val_metrics: dict[str, float] = {}
    if (progress.epoch + 1) % config.eval_every == 0 or progress.epoch + 1 == session.epochs:
        with BlockNorms(session.evaluated) as norms:
            model = session.model if session.ema is None else session.ema.module
            val_metrics = evaluate(
                accelerator, model, session.loaders['val'], session.bad_images['val'], session.inputs, norms
            )
        if config.bad_images == 'stop':
            session.bad_images['val'].refuse(accelerator)
    classes = session.sources['train'].classes
    if len(classes) < 5:
        val_metrics.pop('top5', None)
    progress.epoch_s += time.monotonic() - start
    images = session.order.updates * session.order.update_size
    rates = {f'lr_{name}': rate for name, rate in trackers.group_rates(session.schedule, session.step).items()}
    scales = {f'scale_{name}': scale for name, scale in block_scales(session.network).items()}
    norms_of_blocks = {name: value for name, value in val_metrics.items() if name.startswith('norm_')}
    row = progress.finish_epoch(train_metrics, val_metrics, images, {**rates, **norms_of_blocks, **scales})
    session.curves.add_epoch(session.step, row)
    session.tally = Tally(accelerator.device)
    if session.ema is None:
        weights = sharding.whole_weights(accelerator, session.model, session.network)
    else:
        weights = session.ema.module.state_dict()
    if accelerator.is_main_process:
        live_line.write(describe_epoch(row, session.epochs))
        for name in ('best', 'last') if progress.best() is row else ('last',):
            folder.write_weights(name, session.evaluated, weights, classes, session.input_format, config)
        folder.write_metrics(progress.history)
    if session.thawing.thaw(progress.epoch):
        follow_thaw(session)
        if accelerator.is_main_process:
            live_line.write(networks.describe(config, session.network, session.thawing.regime))


def follow_thaw(session: Session) -> None:
    """Let the schedule, and DDP, know of what has thawed."""
    accelerator = session.accelerator
    if accelerator.num_processes > 1:  # DDP has noted what it averages
        inner = accelerator.unwrap_model(session.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        session.model = inner
        accelerator.free_memory()  # else the earlier DDP would average too
        session.model, *_ = accelerator.prepare(inner, session.optimizer, *session.loaders.values())
    session.schedule = create_schedule(session.config, session.optimizer.optimizer, session.order.updates)
    session.schedule.step_update(session.step)


def report(session: Session, folder: RunFolder) -> None:
    """Measure the best weights once more, as they lie on the disk, and write what was seen."""
    accelerator = session.accelerator
    # The main process looks, for all of them: they must agree, and shared disks are not the same everywhere at once.
    [is_current] = broadcast_object_list([accelerator.is_main_process and folder.has_current_report()])
    if not session.config.report or is_current:
        return
    predictions = evaluation.predict_best(
        session.config, accelerator, folder, session.sources['val'], session.input_format, session.normalize
    )
    if accelerator.is_main_process:
        folder.write_predictions(predictions.to_csv(session.sources['val']))
        write_report(folder, predictions, session.sources['val'])
    accelerator.wait_for_everyone()


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
        with contextlib.redirect_stdout(sys.stderr) if config.json else contextlib.nullcontext():
            summary = main(config)
    except (ValueError, OSError) as error:
        print(f'train.py: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
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
    top5 = '' if summary['top5'] is None else f', top-5 {summary["top5"]:.2f} %'
    if 'run' not in summary:
        written = f'; written: {summary["report"]}' if summary['report'] else ''
        return (
            f'top-1 {summary["top1"]:.2f} %{top5}, mean of the classes {summary["mean_class_top1"]:.2f} %, loss '
            f'{summary["loss"]:.4f} on {summary["images"]} images in {summary["seconds"]:.1f} s{written}'
        )
    return (
        f'best top-1 {summary["top1"]:.2f} %{top5} (epoch {summary["epoch"]}) after {summary["seconds"]:.0f} s, '
        f'in {summary["run"]}; to load it:\n'
        f"import timm, timm_devnet; model = timm.create_model('local-dir:{summary['run']}/best', pretrained=True)"
    )


if __name__ == '__main__':
    sys.exit(cli())
