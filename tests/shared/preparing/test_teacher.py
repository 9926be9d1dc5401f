"""The measures of distance, by hand."""

import math

import pytest
import torch

from fedsprig.preparing.teacher import (
    ClassMeans,
    Teacher,
    calibrated,
    direction_distance,
    divergence,
    feature_distance,
)
from fedsprig.training import features


def test_feature_distance_counts_in_the_targets_variance():
    target = torch.tensor([[0.0, 2.0], [2.0, 0.0]])  # variance 1 in both: a sum of 4
    assert feature_distance(target, target) == 0
    assert feature_distance(torch.ones(2, 2), target) == 1
    assert feature_distance(target + 1, target) == 1
    assert feature_distance(7 * (target + 1), 7 * target) == 1


def test_direction_distance_looks_at_directions_from_the_mean_alone():
    target = torch.tensor([[0.0, 2.0], [2.0, 0.0]])  # about its mean: (-1, 1) and (1, -1)
    assert float(direction_distance(3 * target + 5, target)) == pytest.approx(0, abs=1e-6)
    assert float(direction_distance(-target, target)) == pytest.approx(4)
    assert float(direction_distance(torch.ones(2, 2), target)) == pytest.approx(2)
    right = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # at right angles to it
    assert float(direction_distance(right, target)) == pytest.approx(2)
    half = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # 45 degrees off
    assert float(direction_distance(half, target)) == pytest.approx(2 - math.sqrt(2))


def test_divergence_by_hand():
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(divergence(student, teacher, 1.0)) == pytest.approx(expected)
    assert float(divergence(2 * student, 2 * teacher, 2.0)) == pytest.approx(4 * expected)
    absent = torch.tensor([[-torch.inf]])
    wider = [torch.cat([logits, absent], 1) for logits in (student, teacher)]
    assert float(divergence(*wider, 1.0)) == pytest.approx(expected)


def test_class_means_choose_the_nearest_and_never_an_empty_class():
    means = ClassMeans(
        torch.tensor([[0.0, 0.0], [4.0, 1.0], [1.0, 0.0]]), torch.tensor([True, True, False]), 0.5
    )
    logits = means.logits(torch.tensor([[1.0, 0.0]]))
    # Half of the squared distances, 1 and 10, times the scale.
    assert float(logits[0, 0] - logits[0, 1]) == pytest.approx(0.5 * (10 - 1) / 2)
    assert logits[0, 2] == -torch.inf
    part = means.logits(torch.tensor([[3.0]]), torch.tensor([0]))
    assert float(part[0, 1] - part[0, 0]) == pytest.approx(0.5 * (9 - 1) / 2)


def test_a_calibrated_scale_matches_the_share_of_right_answers():
    """Logits +-1 that are right three times of four: sigmoid(2 s) = 3/4."""
    logits = torch.tensor([[1.0, -1.0]]).repeat(4, 1)
    scale = calibrated(logits, torch.tensor([0, 0, 0, 1]))
    assert scale == pytest.approx(math.log(3) / 2, rel=0.01)


def test_a_teacher_stays_as_it_was_made(tiny, pictures):
    images, labels = pictures
    expected = features(tiny, "linear", images)
    teacher = Teacher(tiny, "linear")
    with torch.no_grad():
        tiny.conv1.weight.zero_()
    torch.testing.assert_close(teacher.features(images), expected)
    classifier = teacher.classifier(images, labels)
    hits = classifier.logits(teacher.features(images)).argmax(1) == labels
    torch.testing.assert_close(classifier.means[0], expected[labels == 0].mean(0))
    assert hits.float().mean() > 0.5
