import pytest
import torch

from adderzoo.ops import pack_filters, unpack_filters


@pytest.mark.parametrize("filters", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_lane_l_of_panel_p_is_filter_16_p_plus_l(filters: int, memory_format: torch.memory_format) -> None:
    weight = torch.randn(filters, 3, 2, 5).contiguous(memory_format=memory_format)
    packed = pack_filters(weight)
    assert packed.shape == (-(-filters // 16), 2, 5, 3, 16)
    assert packed.is_contiguous()
    for panel in range(packed.shape[0]):
        for lane in range(16):
            filter = 16 * panel + lane
            expected = weight[filter].permute(1, 2, 0) if filter < filters else torch.zeros(2, 5, 3)
            assert packed[panel, :, :, :, lane].equal(expected)
    unpacked = unpack_filters(packed, filters)
    assert unpacked.equal(weight)
    assert unpacked.is_contiguous()
