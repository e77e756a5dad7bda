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


def test_what_does_not_fit_is_refused_by_name() -> None:
    bytes_ = torch.zeros(20, 4, 3, 3, dtype=torch.uint8)
    packed, packed_bytes = pack_filters(bytes_.float()), pack_byte_filters(bytes_, 2)
    for call, words in (
        (lambda: pack_filters(torch.zeros(20, 4, 3)), "pack_filters: weight must have 4 dimensions"),
        (lambda: pack_byte_filters(bytes_[0]), "pack_byte_filters: weight must have 4 dimensions"),
        (lambda: pack_byte_filters(bytes_.float()), "pack_byte_filters: weight must be uint8, got torch.float32"),
        *(
            (lambda groups=groups: pack_byte_filters(bytes_, groups), f"pack_byte_filters: groups .* got {groups}")
            for groups in (0, -1, 3, 2**62)
        ),
        (lambda: unpack_filters(bytes_, 20), r"unpack_filters: packed must be .*, got shape \(20, 4, 3, 3\)"),
        *(
            (
                lambda filters=filters: unpack_filters(packed, filters),
                f"unpack_filters: out_channels must be from 17 to 32, got {filters}",
            )
            for filters in (-1, 16, 33, 2**62)
        ),
        (lambda: unpack_byte_filters(packed, 20, 2), "unpack_byte_filters: packed must be"),
        (
            lambda: unpack_byte_filters(packed_bytes, 2**62, 4),
            "unpack_byte_filters: out_channels must be from 17 to 32",
        ),
        (lambda: unpack_byte_filters(packed_bytes, 20, 2**62), "unpack_byte_filters: channels must be from 4 to 4"),
    ):
        with pytest.raises(RuntimeError, match=f"^{words}"):
            call()
