"""A PyTorch model held still: trained as it is judged, so that any number of workers computes the same."""

from torch import nn


def hold_still(model: object) -> bool:
    """From now on ``model`` stays in evaluation mode, also when it is told to train; False for no module.

    Dropout then passes everything on and batch norms use their running statistics: a sample's output
    depends on nothing but the sample and the weights. Gradients flow as ever.
    """
    if not isinstance(model, nn.Module):
        return False
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0  # on a GPU a recurrent layer has no gradients but in training mode
        else:
            module.training = False
        _stay(module)
    return True


def _stay(module: nn.Module) -> None:
    def stay(*_mode: bool, **_named: bool) -> nn.Module:
        return module

    # The instance's own attribute is found before the class's method; ``eval`` calls it as well.
    object.__setattr__(module, "train", stay)
