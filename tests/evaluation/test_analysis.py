"""Selection of the pairs, clips and masks that the report shows, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.csm import make_identity_similarity
from u2s_jax.evaluation import analysis
from u2s_jax.evaluation.scores import Scores


def make_scores(label, universal):
  universal = np.array(universal, np.float32)
  ids = np.array([f"v{i}" for i in range(len(label))])
  names = np.array([f"class {i}" for i in range(universal.shape[1])])
  return Scores(ids, np.array(label, np.int32), names, {"universal": universal})


def test_class_similarity_without_a_csm_is_the_mean_score_of_the_other_class():
  one_pass = make_scores([0, 0, 1], [[0.6, 0.4, 0], [0.8, 0, 0.2], [0.5, 0.5, 0]])
  similarity = analysis.class_similarity(make_identity_similarity(3), one_pass)
  # Class 0 gives 0.2 to 1 and 0.1 to 2, class 1 gives 0.5 to 0; 2 has no clip.
  expected = [[0.7, 0.35, 0.05], [0.35, 0.5, 0], [0.05, 0, 0]]
  np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_class_similarity_is_that_of_the_csm():
  values = jnp.asarray(np.random.default_rng(0).random((3, 3)), jnp.float32)
  csm = make_identity_similarity(3).replace(similarity=values, n=jnp.int32(1))
  similarity = analysis.class_similarity(csm, make_scores([0], [[1.0, 0, 0]]))
  np.testing.assert_array_equal(similarity, values)


def test_confusing_pairs_skip_classes_without_clips():
  similarity = np.array(
    [[1, 0.9, 0.3, 0.1], [0.9, 1, 0.99, 0.5], [0.3, 0.99, 1, 0.2], [0.1, 0.5, 0.2, 1]], np.float32
  )
  labels = np.array([3, 0, 1, 1], np.int32)  # none of class 2
  pairs = analysis.confusing_pairs(similarity, labels, 2)
  assert pairs.tolist() == [[0, 1], [1, 3]]
  assert analysis.confusing_pairs(similarity, labels[:1], 2).shape == (0, 2)


def test_chooses_a_clip_that_u2s_corrects():
  label = [0, 0, 0, 1, 1, 2]
  right, wrong = [[0.9, 0.1, 0], [0.1, 0.9, 0]], [[0.1, 0.9, 0], [0.9, 0.1, 0]]
  one_pass = make_scores(label, [right[0], wrong[0], wrong[0], right[1], wrong[1], right[0]])
  final = make_scores(label, [right[0], wrong[0], right[0], right[1], wrong[1], right[0]])
  pairs = np.array([[0, 1], [1, 2]], np.int32)
  # Corrected; right before and after; never right.
  assert analysis.choose_examples(pairs, one_pass, final) == {"v2": 0, "v3": 1, "v5": 2}


@pytest.mark.parametrize(
  "label,expected", [(0, [0, 2, 3, 5, 1]), (2, [2, 0, 1, 5, 3]), (5, [5, 3, 1, 2, 4])]
)
def test_selects_the_class_its_partner_and_three_others(label, expected):
  similarity = np.eye(6, dtype=np.float32)
  similarity[0] = [1, 0.1, 0.9, 0.8, 0.5, 0.5]
  similarity[2] = [0.9, 0.7, 1, 0.1, 0.5, 0.5]
  similarity[5] = [0.3, 0.9, 0.3, 0.2, 0.1, 1]
  pairs = np.array([[0, 2], [3, 5]], np.int32)
  assert analysis.select_mask_classes(label, pairs, similarity).tolist() == expected


def test_selects_no_others_of_two_classes():
  selected = analysis.select_mask_classes(
    1, np.array([[0, 1]], np.int32), np.eye(2, dtype=np.float32)
  )
  assert selected.tolist() == [1, 0]
