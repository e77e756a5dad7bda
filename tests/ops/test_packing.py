import pytest
import torch

from adderzoo.ops import pack_byte_filters, pack_filters, unpack_byte_filters, unpack_filters


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


@pytest.mark.parametrize(("filters", "channels", "groups", "size"), [
    (15, 8, 1, 8), (16, 3, 1, 8), (17, 9, 1, 8), (48, 20, 3, 8), (6, 5, 3, 1), (20, 1, 20, 1),
])  # fmt: skip
def test_byte_b_of_lane_l_of_a_step_is_a_channel_of_filter_l(
    filters: int, channels: int, groups: int, size: int
) -> None:
    weight = torch.randint(1, 256, (filters, channels, 2, 3), dtype=torch.uint8)
    packed = pack_byte_filters(weight, groups)
    steps = -(-channels // size)
    assert packed.shape == (-(-filters // 16), 2, 3, steps, 16, size)
    assert packed.is_contiguous()
    expected = torch.zeros_like(packed)
    for filter in range(filters):
        for channel in range(channels):
            expected[filter // 16, :, :, channel // size, filter % 16, channel % size] = weight[filter, channel]
    assert packed.equal(expected)
    assert unpack_byte_filters(packed, filters, channels).equal(weight)
