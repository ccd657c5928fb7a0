import pytest
import torch


@pytest.fixture(params=["fbgemm", "qnnpack"])
def engine(request):
    """-> name of one of torch's integer engines, which is set while the test runs"""
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build of torch has no {request.param}; the x86 wheels have both engines")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before
