"""Fine-tuning in the tangent space of a network: a module that is linear in its weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode
from torch.utils import _pytree

from .._checks import check_floating

__all__ = ["LinearizedModule", "linearize"]

_SUFFIX = "_at_linearization"


def linearize(model: nn.Module) -> LinearizedModule:
    r"""The first-order expansion of a network around the weights that it has now.

    .. math::
        f_{\mathrm{lin}}(x; \theta) = f(x; \theta_0) + J_\theta f(x; \theta_0)\,(\theta - \theta_0)

    It is a function of the weights that is linear, so the tasks of networks that are fine-tuned
    like this add up: the sum of task vectors gives the sum of what each changes in the output. That
    is what task arithmetic hopes for, and the price is about two forward passes in one.

    Args:
        model: A module with floating-point parameters. It is copied; the copy's weights are both
            :math:`\theta_0`, fixed from now on, and the :math:`\theta` that training starts from.

    Returns:
        A :class:`LinearizedModule`.

    Raises:
        TypeError: It is not a module, or a parameter is not floating point.
        ValueError: It has no parameters, or is linearized already.

    Example:
        >>> import torch
        >>> from robustcore.merging import linearize, task_vector
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
        >>> linear, x = linearize(network), torch.ones(1, 2)
        >>> torch.equal(linear(x), network(x))
        True
        >>> linear.state_dict().keys() == network.state_dict().keys()
        True
        >>> start = linear.initial_state_dict()
        >>> with torch.no_grad():
        ...     for parameter in linear.parameters():  # training
        ...         _ = parameter.add_(0.1)
        >>> sorted(task_vector(start, linear.state_dict()))
        ['0.bias', '0.weight']
    """
    return LinearizedModule(model)


class LinearizedModule(nn.Module):
    r"""A network as a linear function of its weights; :func:`linearize` makes it.

    .. math::
        f(x; \theta_0) + J_\theta f(x; \theta_0)\,(\theta - \theta_0)

    Its parameters :math:`\theta` have the names that they have in the original module, in
    ``named_parameters()``, ``state_dict()`` and ``load_state_dict()`` alike; so state dicts can be
    exchanged with it, and :func:`task_vector`, :func:`tall_masks`, :class:`TaskSwitcher` and all
    other functions of :mod:`robustcore.merging` work on them. :math:`\theta_0` are buffers that are
    not in the state dict, but move with ``to()``.

    ``forward`` takes what the original takes and returns what it returns, a tensor or a nested
    structure of floating-point tensors. It is one forward-mode pass (:func:`torch.func.jvp`) and
    can be differentiated for :math:`\theta` by ``backward()``: the gradient of :math:`v^\top f` is
    :math:`J^\top v`, whatever :math:`\theta` is.

    The original is evaluated as in ``eval()``, always: dropout is off and BatchNorm uses its
    running statistics, which stay as they are. Otherwise the function would be another one at every
    call. ``train()`` sets only this module's own flag.

    Attributes:
        training: What ``train()`` and ``eval()`` said last; it changes nothing in ``forward``.

    Raises (forward):
        NotImplementedError, RuntimeError: The network has an operation without a forward-mode
            derivative; PyTorch names it. Attention is computed by PyTorch's plain kernel, which has
            one.

    Numerics: those of the network's operations. At :math:`\theta = \theta_0` the result is that of
    the network up to the choice of attention kernel.

    Cost: time and activations of about two forward passes; the weights twice.

    Source: Ortiz-Jimenez et al., Task Arithmetic in the Tangent Space, arXiv 2305.12827.

    Example:
        >>> import torch
        >>> from robustcore.merging import linearize
        >>> square = torch.nn.Bilinear(1, 1, 1, bias=False)  # w x y: linear in w already
        >>> linear, one = linearize(square), torch.ones(1, 1)
        >>> linear(one, 2 * one).equal(square(one, 2 * one))
        True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        op = "linearize"
        if not isinstance(model, nn.Module):
            raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
        if any(isinstance(module, LinearizedModule) for module in model.modules()):
            raise ValueError(f"{op}: model must not be linearized already")
        parameters = dict(model.named_parameters())
        if not parameters:
            raise ValueError(f"{op}: model must have parameters, got none")
        for name, parameter in parameters.items():
            check_floating(op, name, parameter)
        network = copy.deepcopy(model).eval()
        self._initial_names = {}
        for name, parameter in list(network.named_parameters()):
            path, _, key = name.rpartition(".")
            initial = parameter.detach().clone()
            network.get_submodule(path).register_buffer(key + _SUFFIX, initial, persistent=False)
            self._initial_names[name] = name + _SUFFIX
        # In a tuple, the network is no submodule, whose names would have a prefix: it is this
        # module's own parts that it computes with.
        self._network = (network,)
        self._parameters = network._parameters
        self._buffers = network._buffers
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._modules = network._modules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The linearized network; arguments and result are those of the network."""
        network = self._network[0]
        initial = self._initial()
        current = dict(network.named_parameters())
        changes = tuple(current[name] - initial[name] for name in initial)
        structure: list[Any] = []

        def outputs(*weights: Tensor) -> tuple[Tensor, ...]:
            named = dict(zip(initial, weights, strict=True))
            result = torch.func.functional_call(network, named, args, kwargs, tie_weights=True)
            leaves, spec = _pytree.tree_flatten(result)
            structure.append(spec)
            return tuple(leaves)

        # Fused attention has no forward-mode derivative. Inside a mode, if only one that changes
        # nothing, PyTorch's own layers do not take their fused path.
        with sdpa_kernel(SDPBackend.MATH), BaseTorchFunctionMode():
            values, changed = torch.func.jvp(outputs, tuple(initial.values()), changes)[:2]
        sums = [value + change for value, change in zip(values, changed, strict=True)]
        return _pytree.tree_unflatten(sums, structure[-1])

    def initial_state_dict(self) -> dict[str, Tensor]:
        """Copies of :math:`\\theta_0` under the names of ``state_dict()``, with all other buffers.

        It is the base of task vectors: ``task_vector(m.initial_state_dict(), m.state_dict())``.
        """
        initial = self._initial()
        names = {id(tensor): name for name, tensor in self.named_parameters()}
        state = self.state_dict(keep_vars=True)
        chosen = {key: initial[names[id(t)]] if id(t) in names else t for key, t in state.items()}
        return {key: t.clone() if isinstance(t, Tensor) else t for key, t in chosen.items()}

    def train(self, mode: bool = True) -> LinearizedModule:
        """Sets :attr:`training` and nothing else: the network stays in ``eval()``."""
        if not isinstance(mode, bool):
            raise ValueError(f"LinearizedModule.train: mode must be a bool, got {mode!r}")
        self.training = mode
        return self

    def _initial(self) -> dict[str, Tensor]:
        buffers = dict(self._network[0].named_buffers())
        return {name: buffers[place] for name, place in self._initial_names.items()}
