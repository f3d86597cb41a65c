import numpy as np
import pytest
import torch
from torch.nn import functional

from embedcam.errors import TargetError
from embedcam.gradient import ClassScore, Proxy, Scalar, SegmentationScore, Similarity, TripletMargin

LOGITS = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])


def embeddings(count=3, dim=5, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def unit(*arguments, **options):
    return functional.normalize(embeddings(*arguments, **options))


@pytest.mark.parametrize(
    ("index", "wanted"),
    [
        (None, [0.9, 0.5]),
        (2, [0.3, 0.4]),
        ([0, 1], [0.1, 0.2]),
        (torch.tensor([1, 2]), [0.9, 0.4]),
        (torch.tensor(1), [0.9, 0.2]),
    ],
)
def test_class_score_picks_logits(index, wanted):
    torch.testing.assert_close(ClassScore(index)(LOGITS), torch.tensor(wanted))


def test_the_best_class_alone_has_a_gradient_when_two_tie():
    tied = torch.tensor([[1.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(ClassScore()(tied).sum(), tied)
    assert sorted(gradient[0].tolist()) == [0, 1]


@pytest.mark.parametrize("index", [3, -1, [0, 3], []])
def test_class_score_refuses_classes_that_do_not_exist(index):
    with pytest.raises(TargetError, match="class"):
        ClassScore(index)(LOGITS)


def test_class_score_refuses_one_class_too_many():
    with pytest.raises(TargetError, match="3 classes for 2 images; give one, or one per image"):
        ClassScore([0, 1, 2])(LOGITS)


@pytest.mark.parametrize(
    ("output", "found"), [(torch.zeros(2, 3, 4, 4), r"\(2, 3, 4, 4\)"), ({"out": LOGITS}, "dict"), (None, "NoneType")]
)
def test_class_score_says_what_it_found_instead_of_logits(output, found):
    with pytest.raises(TargetError, match=rf"needs logits \(B, classes\), got {found}"):
        ClassScore()(output)


def test_similarity_and_proxy_are_dot_products():
    z, reference = embeddings(), embeddings(seed=1)
    wanted = torch.tensor([float(z[i] @ reference[i]) for i in range(3)])
    for target in (Similarity, Proxy):
        torch.testing.assert_close(target(reference)(z), wanted)
        torch.testing.assert_close(target(reference[0])(z)[2], z[2] @ reference[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_similarity_to_the_image_itself_is_an_error_that_says_why(dtype):
    z = unit().to(dtype)
    z = functional.normalize(z)
    with pytest.raises(TargetError, match="cosine is always 1; give the embedding of another image"):
        Similarity(z)(z)
    with pytest.raises(TargetError, match="an image to itself"):
        Similarity(z[1])(z)


def test_a_reference_made_in_inference_mode_is_understood():
    with torch.inference_mode():
        reference = torch.tensor([0.6, 0.8])
    output = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Similarity(reference)(output).sum(), output)
    assert gradient.tolist() == reference.expand(1, 2).tolist()


def test_similarity_to_a_near_image_is_no_error():
    z = unit()
    near = functional.normalize(z + 1e-3 * embeddings(seed=1))
    assert (Similarity(near)(z) < 1).all()


def test_similarity_to_the_image_itself_has_a_gradient_without_normalising():
    z = embeddings().requires_grad_()
    (gradient,) = torch.autograd.grad(Similarity(z.detach())(z).sum(), z)
    torch.testing.assert_close(gradient, z.detach())


def test_no_gradient_reaches_a_reference():
    z, reference = embeddings().requires_grad_(), embeddings(seed=1).requires_grad_()
    Similarity(reference)(z).sum().backward()
    assert reference.grad is None and z.grad is not None


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_triplet_margin_equals_the_loop_over_its_definition(metric):
    z, positive, negative = unit(), unit(seed=1), unit(seed=2)
    for hinge, margin in ((False, 0.2), (True, 0.2), (True, 0.7)):
        found = TripletMargin(positive, negative, hinge, margin, metric)(z)
        for i in range(3):
            if metric == "cosine":
                nearer = float(z[i] @ positive[i] - z[i] @ negative[i])
            else:
                nearer = float((z[i] - negative[i]).norm() ** 2 - (z[i] - positive[i]).norm() ** 2)
            assert float(found[i]) == pytest.approx(max(0, margin - nearer) if hinge else nearer, abs=1e-6)


def test_easy_triplet_still_has_a_gradient():
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    for hinge, wanted in ((False, [[2.0, 0.0]]), (True, [[0.0, 0.0]])):
        (gradient,) = torch.autograd.grad(TripletMargin(positive, negative, hinge=hinge)(z).sum(), z)
        torch.testing.assert_close(gradient, torch.tensor(wanted))


def test_a_hard_triplet_s_loss_has_the_opposite_sign():
    z = torch.tensor([[0.0, 1.0]], requires_grad=True)
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    margin, loss = (
        torch.autograd.grad(TripletMargin(positive, negative, hinge=hinge)(z).sum(), z)[0] for hinge in (False, True)
    )
    torch.testing.assert_close(loss, -margin)


def test_triplet_margin_refuses_an_unknown_metric():
    with pytest.raises(TargetError, match="unknown metric 'manhattan'; use one of cosine, euclidean"):
        TripletMargin(unit(), unit(), metric="manhattan")


@pytest.mark.parametrize("shape", [(4,), (2, 5), (3, 4), (3, 5, 1)])
@pytest.mark.parametrize("make", [Similarity, Proxy, lambda r: TripletMargin(r, r)])
def test_references_of_another_shape_are_refused(make, shape):
    with pytest.raises(TargetError, match="take both from the same network"):
        make(torch.zeros(shape))(embeddings())


def test_scalar_is_the_function():
    torch.testing.assert_close(Scalar(lambda output: -output[:, 1])(LOGITS), -LOGITS[:, 1])


def scores():
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))


def brute_force(values, index, mask):
    """Sum a class's values over the pixels of a mask (B, H, W), one by one."""
    batch, _, height, width = values.shape
    return torch.tensor(
        [
            sum(float(values[b, index, y, x]) for y in range(height) for x in range(width) if mask[b, y, x])
            for b in range(batch)
        ]
    )


def mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(4)) > 0.5


@pytest.mark.parametrize("reduction", [None, "logits", "head"])
def test_segmentation_score_sums_the_softmax_or_what_it_is_given(reduction):
    logits = scores()
    values = logits.softmax(dim=1) if reduction is None else logits
    everywhere = torch.ones(2, 3, 5, dtype=torch.bool)
    found = SegmentationScore(2, reduction)(logits)
    torch.testing.assert_close(found, brute_force(values, 2, everywhere))
    torch.testing.assert_close(SegmentationScore(2, reduction)({"out": logits, "aux": None}), found)


def test_segmentation_score_knows_which_layer_it_reads():
    wanted = {None: None, "logits": None, "classifier.3": "classifier.3"}
    assert {name: SegmentationScore(0, name).layer for name in wanted} == wanted


def test_several_classes_are_columns_in_the_order_given():
    found = SegmentationScore([3, 1])(scores())
    for column, index in enumerate([3, 1]):
        torch.testing.assert_close(found[:, column], SegmentationScore(index)(scores()))


def test_no_class_is_each_image_s_class_of_the_largest_sum():
    sums = torch.stack([SegmentationScore(index)(scores()) for index in range(4)], dim=1)
    torch.testing.assert_close(SegmentationScore()(scores()), sums.max(dim=1).values)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_a_region_is_a_mask_of_all_images_or_one_an_image(kind):
    for region in (mask(3, 5), mask(2, 3, 5)):
        found = SegmentationScore(1, "logits", kind(region))(scores())
        torch.testing.assert_close(found, brute_force(scores(), 1, region.expand(2, 3, 5)))


def test_a_region_of_image_size_is_brought_to_the_size_of_the_scores():
    small = mask(2, 3, 5)
    large = small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    torch.testing.assert_close(
        SegmentationScore(1, "logits", large)(scores()), SegmentationScore(1, "logits", small)(scores())
    )


def test_a_region_can_be_one_pixel():
    torch.testing.assert_close(SegmentationScore(3, "logits", (2, 4))(scores()), scores()[:, 3, 2, 4])


def test_the_predicted_region_is_each_class_s_own():
    logits = scores()
    best = logits.argmax(dim=1)
    found = SegmentationScore([0, 2], region="predicted")(logits)
    for column, index in enumerate([0, 2]):
        torch.testing.assert_close(found[:, column], brute_force(logits.softmax(dim=1), index, best == index))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (SegmentationScore(4), "class 4 does not exist; the network has 4 classes"),
        (SegmentationScore([0, -1]), r"class \[0, -1\] does not exist"),
        (SegmentationScore([]), "does not exist"),
        (SegmentationScore(0, region=(3, 0)), r"pixel \(3, 0\) is outside the scores, 3 x 5"),
        (SegmentationScore(0, region="all"), "unknown region 'all'"),
        (SegmentationScore(0, region=mask(3, 3, 5)), r"one an image|\(3, 3, 5\)"),
        (SegmentationScore(0, region=mask(5)), r"\(5,\)"),
    ],
)
def test_segmentation_score_refuses_what_does_not_exist(target, message):
    with pytest.raises(TargetError, match=message):
        target(scores())


@pytest.mark.parametrize(("output", "found"), [(LOGITS, r"\(2, 3\)"), ({"boxes": LOGITS}, "dict")])
def test_segmentation_score_says_what_it_found_instead_of_scores(output, found):
    with pytest.raises(TargetError, match=rf"needs scores \(B, classes, H, W\), got {found}"):
        SegmentationScore(0)(output)
