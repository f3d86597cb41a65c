import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from embedcam.classmap.classmap import class_maps, classmap_file, load_classifier
from embedcam.classmap.convolutional import ConvolutionalClassifier
from embedcam.data.images import read_image
from embedcam.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from embedcam.errors import DataError, EmbedcamError, NetworkError, OutputError

NAMES = ("red", "green", "blue")
CELL = 8


class Colours(nn.Module):
    """Tells which colour channel is strongest: the mean colour of cells of 8 x 8 pixels, times ten."""

    def __init__(self):
        super().__init__()
        self.features = nn.AvgPool2d(CELL)
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(3))

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


@pytest.fixture
def colours():
    return ConvolutionalClassifier(Colours(), NAMES, window=1, input_size=(32, 32))


def canvas():
    """Red in cells (0..1, 0..1), green in cells (3, 4..6) and, apart from it, (0, 6); black elsewhere."""
    image = torch.zeros(1, 3, 4 * CELL, 7 * CELL)
    image[0, 0, : 2 * CELL, : 2 * CELL] = 1
    image[0, 1, 3 * CELL :, 4 * CELL :] = 1
    image[0, 1, :CELL, 6 * CELL :] = 1
    return image


def test_probabilities_are_the_softmax_at_every_cell(colours):
    (found,) = class_maps(colours, canvas())
    sure, other = np.exp(10) / (np.exp(10) + 2), 1 / (np.exp(10) + 2)
    np.testing.assert_allclose(found.probabilities[:, 0, 0], [sure, other, other], rtol=1e-5)
    np.testing.assert_allclose(found.probabilities[:, 3, 5], [other, sure, other], rtol=1e-5)
    np.testing.assert_allclose(found.probabilities[:, 3, 0], 1 / 3, rtol=1e-5)


def test_each_class_somewhere_above_the_threshold_is_found_with_a_box_a_region(colours):
    (found,) = class_maps(colours, canvas(), box_threshold=0.6)
    assert sorted(each.name for each in found.detections) == ["green", "red"]
    by_name = {each.name: each for each in found.detections}
    assert by_name["red"].index == 0
    assert by_name["red"].probability == pytest.approx(1, abs=1e-3)
    (red,) = by_name["red"].boxes
    # Between the centres of a red cell (1) and a black one (1/3), 0.6 is reached 0.6 cells out.
    assert (red.left, red.top, red.right, red.bottom) == (0, 0, 17, 17)
    assert [(box.left, box.top) for box in by_name["green"].boxes] == [(31, 23), (47, 0)]


def test_heat_map_is_the_probability_interpolated_between_the_centres_of_cells(colours):
    (found,) = class_maps(colours, canvas())
    red = next(each for each in found.detections if each.name == "red")
    assert red.heatmap.shape == found.best.shape == (4 * CELL, 7 * CELL)
    sure, even = found.probabilities[0, 0, 0], found.probabilities[0, 0, 2]
    np.testing.assert_allclose(red.heatmap[0, :12], sure, rtol=1e-5)
    # Pixel 15 is centred at 15.5, between the cells' centres at 12 and 20.
    np.testing.assert_allclose(red.heatmap[0, 15], sure + (15.5 - 12) / 8 * (even - sure), rtol=1e-5)


def test_thresholds_decide_what_is_found_and_boxed(colours):
    (strict,) = class_maps(colours, canvas() * 0.2, class_threshold=0.85)  # softmax of (2, 0, 0): 0.79
    assert strict.detections == []
    (lax,) = class_maps(colours, canvas() * 0.2, class_threshold=0.75, box_threshold=0.78)
    assert [each.name for each in lax.detections] == ["red", "green"]
    (red,) = lax.detections[0].boxes
    assert red.right <= CELL * 1.5


def test_strongest_lists_classes_that_pass_no_threshold(colours):
    (found,) = class_maps(colours, canvas() * 0.2)
    names, probabilities = zip(*found.strongest(3), strict=True)
    assert names == ("red", "green", "blue")
    np.testing.assert_allclose(probabilities, [0.787, 0.787, 1 / 3], atol=1e-3)


def test_images_of_a_batch_get_a_class_map_each(colours):
    both = torch.cat([canvas(), canvas().flip(1)])
    first, second = class_maps(colours, both)
    assert {each.name for each in first.detections} == {"red", "green"}
    assert {each.name for each in second.detections} == {"green", "blue"}


def test_stretch_placement_is_the_plain_resize(colours):
    colours.trunk = nn.Sequential(nn.ZeroPad2d((CELL, 0, CELL, 0)), nn.AvgPool2d(CELL))
    image = canvas()
    (stretched,) = class_maps(colours, image, placement="stretch")
    expected = nn.functional.interpolate(
        torch.from_numpy(stretched.probabilities)[None], size=image.shape[2:], mode="bilinear"
    )
    for each in stretched.detections:
        np.testing.assert_allclose(each.heatmap, expected[0, each.index], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_threshold": 0.0}, "class_threshold"),
        ({"class_threshold": 1.2}, "class_threshold"),
        ({"box_threshold": 0.0}, "box_threshold"),
        ({"placement": "centre"}, "receptive-field, stretch"),
    ],
)
def test_options_out_of_range_are_refused(colours, options, message):
    with pytest.raises(EmbedcamError, match=message):
        class_maps(colours, torch.zeros(1, 3, 32, 32), **options)


def test_boxes_are_drawn_to_the_scale_of_the_picture(colours):
    (found,) = class_maps(colours, canvas())
    picture = np.full((4 * CELL * 10, 7 * CELL * 10, 3), 128, dtype=np.uint8)
    drawn = found.draw(picture)
    changed = (drawn != picture).any(axis=2)
    assert changed[:190, :190].any()  # around red
    assert changed[220:, 290:].any()  # around green
    assert not changed[200:, :250].any()  # nothing where nothing is
    assert (picture == 128).all()


def test_box_smaller_than_a_pixel_of_a_tiny_picture_is_drawn_as_that_pixel(colours):
    (found,) = class_maps(colours, canvas())
    assert found.draw(np.zeros((1, 1, 3), dtype=np.uint8)).any()


def test_sheet_has_a_cell_a_found_class(colours):
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    (two,) = class_maps(colours, canvas())
    (none,) = class_maps(colours, canvas() * 0.2)
    assert two.sheet(picture).width > 1.8 * none.sheet(picture).width


@pytest.fixture
def photograph(tmp_path):
    """Red at the left, green at the right, 40 x 20 pixels, in colours that Preprocess turns into 1 and 0."""
    zero = np.array(IMAGENET_MEAN)
    pixels = np.tile(zero, (20, 40, 1))
    pixels[:, :15, 0] += IMAGENET_STD[0]
    pixels[:, 25:, 1] += IMAGENET_STD[1]
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(tmp_path / "flag.png")
    return tmp_path / "flag.png"


def test_classmap_file_writes_the_boxes_and_the_sheet(colours, photograph, tmp_path):
    found = classmap_file(colours, photograph, tmp_path / "out", size=40)
    assert {each.name for each in found.detections} == {"red", "green"}
    assert found.best.shape == (40, 80)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "flag_boxes.png",
        "flag_classes.png",
    ]
    assert read_image(tmp_path / "out" / "flag_boxes.png").size == (40, 20)


def test_picture_is_looked_at_at_the_native_size_by_default(colours, photograph, tmp_path):
    assert classmap_file(colours, photograph, tmp_path).best.shape == (32, 64)


def test_network_that_slides_a_grid_looks_at_twice_its_native_size(photograph, tmp_path):
    class Gridded(Colours):
        def forward(self, images):
            return self.head(nn.functional.adaptive_avg_pool2d(self.features(images), 2).flatten(1)[:, ::4])

    found = classmap_file(ConvolutionalClassifier(Gridded(), input_size=(16, 16)), photograph, tmp_path)
    assert found.probabilities.shape == (3, 3, 7)


def test_bad_files_and_folders_get_one_clear_error(colours, photograph, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        classmap_file(colours, tmp_path / "none.jpg", tmp_path)
    with pytest.raises(OutputError):
        classmap_file(colours, photograph, photograph / "out")
    with pytest.raises(EmbedcamError, match="size must be at least 1"):
        classmap_file(colours, photograph, tmp_path, size=0)
    with pytest.raises(DataError, match="20000 x 10000 pixels"):
        classmap_file(colours, photograph, tmp_path, size=10_000)


@pytest.mark.parametrize(("classes", "first"), [(1000, "tench"), (7, "class 0")])
def test_classifier_loads_with_the_names_of_its_classes(tmp_path, classes, first):
    torch.manual_seed(3)
    model = models.squeezenet1_1(num_classes=classes).eval()
    save_file({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "net.safetensors")
    loaded = load_classifier("squeezenet1_1", tmp_path / "net.safetensors", window="whole")
    assert loaded.names[0] == first
    assert loaded.input_size == (224, 224)
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images)[..., 0, 0], model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet", "did you mean"), ("tiny", "no classifier"), ("shufflenet_v2_x0_5", "missing")],
)
def test_classifier_that_does_not_fit_is_refused(tmp_path, name, message):
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(NetworkError, match=message):
        load_classifier(name, tmp_path / "net.safetensors")
