"""Keep DDP's reducer in step with what trains: it all-reduces only what required a gradient when the model was wrapped."""

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

__all__ = ["check_reducer", "check_strategy", "reducer_knows", "rewrap"]


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy under which parameters cannot be frozen and thawed in flight.

    Raises:
        ValueError: for anything but one device, DDP without `static_graph`, and `ModelParallelStrategy` (FSDP2).
    """
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"LayerFreezing does not support {type(strategy).__name__}: its parameters are flattened or owned by another engine, "
            "so that single ones cannot thaw in flight. Use strategy='ddp', or ModelParallelStrategy() for FSDP2"
        )
    static = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("static_graph")
    if static or getattr(strategy.model, "static_graph", False):
        raise ValueError(
            "LayerFreezing: DDP with static_graph=True takes the first step's graph for every step, but a phase change makes "
            "another one. Drop static_graph=True"
        )


def reducer_knows(strategy: Strategy, module: LightningModule) -> bool:
    """Tell whether DDP synchronises as many parameters as train; always true without DDP."""
    return _known(strategy, module) == _trainable(strategy, module)


def rewrap(strategy: Strategy, module: LightningModule) -> None:
    """Wrap the model again through the strategy, so that DDP synchronises what trains now.

    To be called between two optimiser steps, on all ranks. Communication hooks move to the new wrapper; PowerSGD's error
    feedback and its warm-up begin anew, because the gradient buckets are others.
    """
    old = strategy.model
    if not isinstance(strategy, DDPStrategy) or not isinstance(old, DistributedDataParallel):
        return
    old._remove_autograd_hooks()
    strategy.model = module
    strategy.configure_ddp()
    new = strategy.model
    assert isinstance(new, DistributedDataParallel)
    if not new._comm_hooks:
        for hook, state in old._comm_hooks:
            new.register_comm_hook(state, hook)
    for _, state in new._comm_hooks:
        if isinstance(state, PowerSGDState):
            for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                memory.clear()
            state.iter = 0


def check_reducer(strategy: Strategy, module: LightningModule) -> None:
    """Make sure that DDP synchronises as many parameters as train.

    Raises:
        RuntimeError: if it does not, because then ranks would drift apart without a word.
    """
    if not reducer_knows(strategy, module):
        raise RuntimeError(
            f"LayerFreezing: {_trainable(strategy, module)} parameters train but DDP synchronises {_known(strategy, module)}, so "
            "that ranks would drift apart. Something else changed requires_grad: let only LayerFreezing freeze and thaw"
        )


def _known(strategy: Strategy, module: LightningModule) -> int:
    wrapper = strategy.model
    if not isinstance(wrapper, DistributedDataParallel):
        return _trainable(strategy, module)
    return int(wrapper._get_ddp_logging_data()["num_parameter_tensors"])


def _trainable(strategy: Strategy, module: LightningModule) -> int:
    ignored = getattr(strategy.model, "parameters_to_ignore", ())
    return sum(p.requires_grad for name, p in module.named_parameters() if name not in ignored)
