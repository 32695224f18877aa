import pytest
import torch

from upsnet.ops.sizes import MULTIPLES_OF_32, InputForm
from upsnet.ops.views import View, ViewPlan

ALIGNED = InputForm(remainder=1)


def make_view(sizes, base_sizes, input_size, base_input, *, flipped=False):
    images = torch.zeros(len(sizes), 3, *input_size, dtype=torch.uint8)
    view = View(images, torch.tensor(sizes), sizes, base_sizes, base_input)
    return view.flipped() if flipped else view


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((), "none"),
        ((1.0, 1.0), "1 1, expected at most 16 different numbers"),
        ((0.0,), "0, expected numbers from 0.1 to 10"),
        ((float("nan"),), "nan, expected numbers"),
        ((1.0, 11.0), "1 11, expected numbers"),
        (tuple(1 + n / 100 for n in range(17)), "at most 16"),
    ],
)
def test_unusable_scales_are_named(scales, message):
    with pytest.raises(ValueError, match=message):
        ViewPlan(scales)


@pytest.mark.parametrize("form", [MULTIPLES_OF_32, ALIGNED])
def test_mirrored_views_have_whole_cells_and_others_are_only_rounded(form):
    plain, mirrored = ViewPlan((0.5, 1.0)), ViewPlan((0.5, 1.0), flip=True)
    assert plain.base_size((61, 83), form) == (61, 83)
    assert plain.sizes((61, 83), form) == [(30, 42), (61, 83)]
    for size in [mirrored.base_size((61, 83), form), *mirrored.sizes((64, 84), form)]:
        assert all(side % 4 == form.remainder for side in size)
    assert ViewPlan((0.1,), flip=True).sizes((5, 5), form) == [(4 + form.remainder,) * 2]


def test_the_mirror_image_keeps_its_padding():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)
    sizes = [(4, 6), (3, 5)]
    view = View(images, torch.tensor(sizes), sizes, sizes, (4, 6)).flipped()
    assert torch.equal(view.images[0], images[0].flip(-1))
    assert torch.equal(view.images[1, ..., :5], images[1, ..., :5].flip(-1))
    assert torch.equal(view.images[1, ..., 5:], images[1, ..., 5:])
    assert torch.equal(view.flipped().images, images)


def ramps(view, align_corners):
    """Maps of the view whose two channels are y and x in pixels of the base at the centre of each cell."""
    height, width = view.images.shape[2:]
    cells = [(side - 1) // 4 + 1 if align_corners else side // 4 for side in (height, width)]
    rows, columns = ([n * 4.0 if align_corners else n * 4 + 1.5 for n in range(count)] for count in cells)
    maps = []
    for size, base in zip(view.sizes, view.base_sizes, strict=True):
        y = (torch.tensor(rows) + 0.5) * base[0] / size[0] - 0.5
        x = (torch.tensor(columns) + 0.5) * base[1] / size[1] - 0.5
        x = base[1] - 1 - x if view.is_flipped else x
        maps.append(torch.stack(torch.meshgrid(y, x, indexing="ij")))
    return torch.stack(maps)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [0.75, 1.0, 1.3])
def test_maps_lie_on_the_base_where_they_lie_on_the_image(scale, align_corners, flipped):
    form = ALIGNED if align_corners else MULTIPLES_OF_32
    base_sizes = [(96, 128), (61, 83)]
    sizes = [(round(h * scale), round(w * scale)) for h, w in base_sizes]
    base_input = form.padded_size((96, 128))
    view = make_view(sizes, base_sizes, form.padded_size(sizes[0]), base_input, flipped=flipped)
    found = view.maps_to_base(ramps(view, align_corners), align_corners=align_corners)
    plain = make_view(base_sizes, base_sizes, base_input, base_input)
    expected = ramps(plain, align_corners)
    assert found.shape == expected.shape
    for row, (height, width) in enumerate(base_sizes):  # cells at the border may repeat the last cell of the view
        inner = (expected[row, 0] < height - 6) & (expected[row, 1] < width - 6) & (expected[row].amin(0) > 6)
        torch.testing.assert_close(found[row][:, inner], expected[row][:, inner], atol=2e-4, rtol=0)


def test_the_base_is_not_resampled():
    view = make_view([(60, 90)], [(60, 90)], (64, 96), (64, 96))
    maps = torch.randn(1, 2, 16, 24)
    assert view.is_base
    assert view.maps_to_base(maps) is maps
    assert not view.flipped().is_base


def test_mirrored_cells_of_the_same_size_get_the_values_bit_for_bit():
    view = make_view([(64, 92)], [(64, 92)], (64, 96), (64, 96), flipped=True)
    maps = torch.randn(1, 2, 16, 24)
    assert torch.equal(view.maps_to_base(maps)[..., :23], maps[..., :23].flip(-1))


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_go_to_the_base_and_back(flipped):
    view = make_view([(30, 60)], [(60, 90)], (32, 64), (64, 96), flipped=flipped)
    boxes = torch.tensor([[[6.0, 3.0, 12.0, 30.0], [0.0, 0.0, 60.0, 30.0]]])
    expected = [[9.0, 6.0, 18.0, 60.0], [0.0, 0.0, 90.0, 60.0]]
    if flipped:
        expected = [[90 - x2, y1, 90 - x1, y2] for x1, y1, x2, y2 in expected]
    found = view.boxes_to_base(boxes)
    assert found.tolist() == [expected]
    torch.testing.assert_close(view.boxes_from_base(found), boxes)
    classes = boxes[:, None].expand(1, 2, 2, 4)  # with a dimension more
    assert view.boxes_to_base(classes)[0, 1].tolist() == expected


@pytest.mark.parametrize("flipped", [False, True])
def test_offsets_grow_with_the_image_and_turn_round_in_the_mirror(flipped):
    view = make_view([(32, 64)], [(64, 64)], (32, 64), (64, 64), flipped=flipped)
    offsets = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 8, 16)
    found = view.offsets_to_base(offsets)
    assert found[0, 0].unique().tolist() == [2.0]
    assert found[0, 1].unique().tolist() == [-3.0 if flipped else 3.0]
