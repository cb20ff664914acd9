"""The PyTorch backend keeps the contract, and what is special about PyTorch."""

from modelyard.backends.contract import BackendContract, Case


class TestContractWithMlp(BackendContract):
    case = Case(backend="pytorch", build="mlp", input_shape=(6,))


class TestContractWithCnn(BackendContract):
    case = Case(
        backend="pytorch",
        build="cnn-small",
        args={"channels": [4], "hidden": 8},
        wrong_args={"channels": [4], "outputs": 7},
    )
