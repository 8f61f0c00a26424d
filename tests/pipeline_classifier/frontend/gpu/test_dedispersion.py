"""The sums of the tree in torch are those of the compiled loops to the bit."""

import numpy as np
import pytest
import torch

from pipeline_classifier.frontend.dedispersion import DedispersionTree, channel_delays, delay_quanta
from pipeline_classifier.frontend.gpu.dedispersion import DeviceTree
from tests.pipeline_classifier.frontend.gpu.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("nchans", "tsamp"), [(1, 1e-3), (2, 1e-4), (3, 1e-3), (100, 1e-3), (256, 5e-4), (1100, 2e-3)])
def test_device_and_cpu_agree(nchans, tsamp, exact, device):
    frequencies, dms = np.linspace(1500, 1200, nchans), 3.0 + 2 * np.arange(40)
    delays = channel_delays(dms, frequencies, tsamp)
    quanta = None if exact else delay_quanta(dms, frequencies, tsamp)
    cpu, gpu = DedispersionTree(delays, quanta), DeviceTree(delays, quanta, device)
    np.testing.assert_array_equal(gpu.delays, cpu.delays)
    assert gpu.max_delay == cpu.max_delay
    data = np.random.default_rng(0).integers(-127, 128, (nchans, 500 + cpu.max_delay)).astype(np.int8)
    samples = torch.from_numpy(data).to(device)
    expected, summed = cpu(data, 500), gpu(samples, 500)
    assert summed.device.type == device
    np.testing.assert_array_equal(summed.cpu().numpy(), expected)
    for n in (1, cpu.max_delay // 2 + 1, 400):
        for origin, columns in ((None, cpu.max_delay + n), (30, n + 40), (-5, n), (cpu.max_delay + 9, n + 20)):
            plane = np.ones((40, columns), expected.dtype)
            on_device = torch.from_numpy(plane).to(device, copy=True)
            cpu.add(np.ascontiguousarray(data[:, :n]), plane, origin)
            gpu.add(samples[:, :n], on_device, origin)
            np.testing.assert_array_equal(on_device.cpu().numpy(), plane)
