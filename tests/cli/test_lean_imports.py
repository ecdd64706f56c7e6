import subprocess
import sys

CODE = """
import sys
from lmstack.cli.lean_imports import DynamoStandIn, import_lightning
import_lightning({config})
{check}
"""


def run(check: str, config: str = "{}") -> str:
    code = CODE.format(config=config, check=check)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_lightning_comes_without_what_a_run_does_not_use() -> None:
    heavy = ("sympy", "transformers", "matplotlib", "scipy", "tensorboard", "litdata", "torch._inductor")
    check = f"print([n for n in {heavy} if sys.modules.get(n)], 'lightning.pytorch.cli' in sys.modules)"
    assert run(check) == "[] True"


def test_the_real_dynamo_comes_when_it_is_asked_for_and_compiled_modules_are_recognized() -> None:
    check = """
import torch
from lightning.fabric.wrappers import OptimizedModule
assert isinstance(sys.modules["torch._dynamo"], DynamoStandIn)
optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
optimizer.step()
assert isinstance(sys.modules["torch._dynamo"], DynamoStandIn)
import torch._dynamo.eval_frame as eval_frame
assert eval_frame is sys.modules["torch._dynamo"].eval_frame
assert eval_frame.__spec__.origin.endswith("eval_frame.py")
compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert compiled(torch.ones(1, 2)).shape == (1, 2)
print(isinstance(compiled, OptimizedModule), isinstance(torch.nn.Linear(2, 2), OptimizedModule))
"""
    assert run(check) == "True False"


def test_a_run_that_compiles_gets_the_real_dynamo_at_once() -> None:
    check = "print(type(sys.modules['torch._dynamo']).__name__)"
    assert run(check, config="{'model': {'compile_blocks': True}}") == "module"


def test_hidden_packages_can_be_imported_afterwards() -> None:
    assert run("import matplotlib, importlib.metadata as m; print(m.version('matplotlib') > '')") == "True"
