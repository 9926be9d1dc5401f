"""What a network's classifier sees in a forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from fedsprig.errors import PlanError


class HeadInput:
    """Within it, the classifier's input of each forward pass is kept until it is taken.

    Args:
        network: Calls its head once in a forward pass.
        head: Module path of the classifier.

    Raises:
        PlanError: No such module.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        if not head:
            raise PlanError("features need a head: pass the module path of the classifier")
        try:
            self._module = network.get_submodule(head)
        except AttributeError as error:
            raise PlanError(f"the model has no module {head!r}: name its classifier") from error
        self._name = head
        self._seen: list[Tensor] = []

    def __enter__(self) -> HeadInput:
        self._hook = self._module.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0].mean((2, 3)) if inputs[0].ndim == 4 else inputs[0])

    def take(self) -> Tensor:
        """What was seen in the one forward pass since the last call.

        Returns:
            ``[n, F]``; the mean over its pixels of a map that a convolutional head sees.

        Raises:
            PlanError: The module was not called once, or on what is neither ``[n, F]`` nor
                ``[n, F, h, w]``.
        """
        seen, self._seen = self._seen, []
        if len(seen) != 1 or seen[0].ndim != 2:
            shapes = ", ".join(str(list(one.shape)) for one in seen) or "nothing"
            raise PlanError(
                f"module {self._name!r} sees {shapes} in a forward pass: name the one classifier"
            )
        return seen[0]
