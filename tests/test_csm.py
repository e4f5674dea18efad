"""Tests of the category similarity matrix: by hand, against plain loops, and on all devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import csm


def _off_diagonal_mean(similarity, alpha):
  """Counts the off-diagonal entries > alpha per class, on average, with loops."""
  size = len(similarity)
  count = sum(float(similarity[i][j]) > alpha for i in range(size) for j in range(size) if i != j)
  return count / size


def _symmetric(size, values):
  """Returns a similarity matrix with `values` in its upper triangle, row by row."""
  matrix = np.eye(size)
  matrix[np.triu_indices(size, 1)] = values
  return np.maximum(matrix, matrix.T)


def _features(rng, num, channels=5, dtype=np.float32):
  """Returns features after a ReLU: about half of the responses are zero."""
  return np.maximum(rng.normal(size=(num, 2, 3, 4, channels)), 0).astype(dtype)


# Eq. 1


def test_channel_sparsity_by_hand():
  features = np.zeros((2, 1, 2, 2, 3), np.float32)
  features[0, 0, :, :, 0] = [[1, 2], [3, 4]]  # always responds
  features[0, 0, 0, 1, 1] = -0.5  # a nonzero response, whatever its sign
  features[1, 0, 1, :, 2] = [1e-30, 7]
  features[1, 0, 0, 0, 0] = -0.0
  np.testing.assert_array_equal(
    csm.channel_sparsity(jnp.asarray(features)), [[0, 0.75, 1], [1, 1, 0.5]]
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_channel_sparsity_is_one_minus_the_nonzero_fraction(dtype):
  features = _features(np.random.default_rng(0), 4)
  sparsity = csm.channel_sparsity(jnp.asarray(features, dtype))
  assert sparsity.dtype == jnp.float32
  for n in range(4):
    for c in range(5):
      nonzero = sum(value != 0 for value in features[n, ..., c].ravel())
      assert sparsity[n, c] == pytest.approx(1 - nonzero / 24, abs=1e-6)


def test_channel_sparsity_of_an_image():
  assert csm.channel_sparsity(jnp.ones((1, 1, 7, 7, 2))).shape == (1, 2)


# Sums over the data set


def _summed(features, labels, valid, num_classes, sums=None):
  """Adds a batch to the zero responses and samples of each class."""
  zeros, samples = sums or (None, None)
  batch = np.asarray(labels), np.asarray(valid).astype(bool), num_classes
  ones = np.ones(len(features), np.int32)
  return (
    csm.add_by_class(zeros, csm.count_zeros(jnp.asarray(features)), *batch),
    csm.add_by_class(samples, ones, *batch),
  )


def test_zero_counts_against_loops():
  rng = np.random.default_rng(1)
  features = _features(rng, 6)
  labels = np.array([2, 0, 2, 3, 0, 2])
  valid = np.array([True, True, True, True, False, True])
  zeros, counts = _summed(features, labels, valid, 4)
  expected = np.zeros((4, 5), int)
  for video, label, real in zip(features, labels, valid, strict=True):
    if real:
      for c in range(5):
        expected[label, c] += sum(value == 0 for value in video[..., c].ravel())
  np.testing.assert_array_equal(zeros, expected)
  np.testing.assert_array_equal(counts, [1, 0, 3, 1])
  assert zeros.dtype == counts.dtype == np.int64


def test_ignores_padding_and_unknown_labels():
  features = jnp.zeros((4, 1, 1, 1, 2)).at[2].set(jnp.nan)
  for valid in ([True, False, True, True], [1.0, 0, 1, 1], [1, 0, 1, 1]):
    zeros, counts = _summed(features, [1, 1, -1, 2], valid, 2)
    np.testing.assert_array_equal(zeros, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(counts, [0, 1])


def test_zero_counts_are_exact_beyond_float32():
  # All but one of 2**24 + 2 responses are zero: float32 cannot represent 2**24 + 1.
  frames = (2**24 + 2) // 6
  features = jnp.zeros((6, frames, 1, 1, 1), jnp.bfloat16).at[0, 0].set(1)
  zeros, _ = _summed(features, np.zeros(6, int), np.ones(6, bool), 1)
  assert zeros[0, 0] == 6 * frames - 1
  assert int(np.float32(6 * frames - 1)) != 6 * frames - 1


@pytest.mark.parametrize("count", [2**31 - 1, 2**30, 18 * 7 * 7])
def test_sums_do_not_wrap(count):
  # With 18 x 7 x 7 responses per clip, int32 wraps after 2.4 million clips of a class.
  clips, total = 2**32 // count + 3, 0
  sums, values = None, np.full((1000, 1), count, np.int32)
  labels, valid = np.zeros(1000, int), np.ones(1000, bool)
  for start in range(0, min(clips, 9000), 1000):
    sums = csm.add_by_class(sums, values, labels, valid, 2)
    total += 1000 * count
    assert sums.tolist() == [[total], [0]], start
  sums[0] = total = clips * count  # as after the clips before
  sums = csm.add_by_class(sums, values[:1], labels[:1], valid[:1], 2)
  assert sums.tolist() == [[total + count], [0]] and total > 2**32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_counts_do_not_depend_on_devices_or_batches(dtype):
  rng = np.random.default_rng(2)
  features = jnp.asarray(_features(rng, 16), dtype)
  labels, valid = rng.integers(0, 3, 16), rng.random(16) < 0.8
  function = jax.jit(csm.count_zeros)
  expected = csm.count_zeros(features)

  devices = math.gcd(16, len(jax.devices()))
  mesh = jax.make_mesh(
    (devices,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  np.testing.assert_array_equal(function(jax.device_put(features, sharding)), expected)

  order, sums = rng.permutation(16), None
  for k in np.split(order, [3, 4, 11]):
    sums = _summed(features[k], labels[k], valid[k], 3, sums)
  for got, want in zip(sums, _summed(features, labels, valid, 3), strict=True):
    np.testing.assert_array_equal(got, want)


def test_class_sparsity_is_the_mean_of_channel_sparsity():
  features = _features(np.random.default_rng(3), 5)
  labels = np.array([1, 0, 1, 1, 0])
  zeros, counts = _summed(features, labels, np.ones(5, bool), 2)
  sparsity = csm.class_sparsity(np.asarray(zeros, np.float64) / 24, counts)
  single = np.asarray(csm.channel_sparsity(jnp.asarray(features)))
  np.testing.assert_allclose(sparsity[0], single[[1, 4]].mean(0), rtol=1e-6)
  np.testing.assert_allclose(sparsity[1], single[[0, 2, 3]].mean(0), rtol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_class_sparsity_by_hand(convert):
  sparsity = csm.class_sparsity(convert([[1.0, 3.0], [0.0, 0.5]]), convert([4, 1]))
  assert isinstance(sparsity, np.ndarray) and sparsity.dtype == np.float64
  np.testing.assert_array_equal(sparsity, [[0.25, 0.75], [0, 0.5]])


@pytest.mark.parametrize(
  ("counts", "message"),
  [
    ([1, 0, 1], "1 of 3 classes .*class index 1[)];"),
    ([0, 3, 0], "2 of 3 classes .*class index 0, 2[)];"),
    ([0] * 9, "9 of 9 classes .*class index 0, 1, 2, 3, 4, [.]{3}[)];"),
  ],
)
def test_class_sparsity_lists_classes_without_samples(counts, message):
  with pytest.raises(ValueError, match=message):
    csm.class_sparsity(np.zeros((len(counts), 2)), np.array(counts))


# Eq. 2


def test_cosine_similarity_by_hand():
  # Angles 0, 45 and 90 degrees: cos = 1, sqrt(1/2), 0.
  similarity = csm.similarity_matrix(np.array([[1.0, 0], [0.5, 0.5], [0, 0.2]]))
  near = (1 + math.sqrt(0.5)) / 2
  np.testing.assert_allclose(
    similarity, [[1, near, 0.5], [near, 1, near], [0.5, near, 1]], atol=1e-9
  )


def test_euclidean_similarity_by_hand():
  # Distances 0.5, 1 and sqrt(1.25) of at most sqrt(2).
  similarity = csm.similarity_matrix(np.array([[0.0, 0], [0.3, 0.4], [1, 0]]), "euclidean")
  assert similarity[0, 1] == pytest.approx(1 - 0.5 / math.sqrt(2))
  assert similarity[0, 2] == pytest.approx(1 - 1 / math.sqrt(2))
  assert similarity[1, 2] == pytest.approx(1 - math.hypot(0.7, 0.4) / math.sqrt(2))
  # Both ends of the range.
  ends = csm.similarity_matrix(np.array([[0.0, 0, 0], [1, 1, 1], [0, 0, 0]]), "euclidean")
  np.testing.assert_array_equal(ends, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_similarity_is_symmetric_with_diagonal_one_and_in_range(distance):
  sparsity = np.random.default_rng(4).random((13, 37)).astype(np.float32)
  similarity = csm.similarity_matrix(jnp.asarray(sparsity), distance)
  assert isinstance(similarity, np.ndarray)
  np.testing.assert_array_equal(similarity, similarity.T)
  np.testing.assert_array_equal(np.diagonal(similarity), 1)
  assert similarity.min() >= 0 and similarity.max() <= 1


def test_similarity_against_loops():
  sparsity = np.random.default_rng(5).random((4, 6))
  for distance in ("cosine", "euclidean"):
    similarity = csm.similarity_matrix(sparsity, distance)
    for i, a in enumerate(sparsity):
      for j, b in enumerate(sparsity):
        if distance == "cosine":
          dot = sum(x * y for x, y in zip(a, b, strict=True))
          far = (1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))) / 2
        else:
          far = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) / math.sqrt(6)
        assert similarity[i, j] == pytest.approx(1 - far, abs=1e-9)


def test_cosine_similarity_of_a_zero_vector_is_finite():
  similarity = csm.similarity_matrix(np.array([[0.0, 0], [1, 1], [0, 0]]))
  np.testing.assert_array_equal(similarity, [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]])


def test_equal_pairs_have_equal_similarities():
  # Each class is the previous one rotated: exactly, all adjacent pairs are equally similar.
  row = np.random.default_rng(6).random(37)
  rolled = np.stack([np.roll(row, k) for k in range(37)])
  assert len({float(a @ b) for a, b in zip(rolled, np.roll(rolled, 1, axis=0), strict=True)}) > 1
  for distance in ("cosine", "euclidean"):
    similarity = csm.similarity_matrix(rolled, distance)
    assert len({similarity[k, (k + 1) % 37] for k in range(37)}) == 1


def test_unknown_distance():
  with pytest.raises(ValueError, match="distance: 'cosin' is not one of cosine, euclidean"):
    csm.similarity_matrix(np.ones((2, 2)), "cosin")


# N, alpha, CSM


@pytest.mark.parametrize(
  ("target", "expected"), [(0.3, 1), (0.5, 1), (0.51, 2), (0.85, 3), (0.95, 4), (1, 4)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confusing_count(target, expected, dtype):
  assert csm.confusing_count(np.array([0.5, 0.8, 0.85, 1.0], dtype), target) == expected


def test_confusing_count_reaches_a_target_rounded_down_by_float32():
  assert float(np.float32(0.95)) < 0.95
  for target in (0.95, np.float64(0.95)):
    assert csm.confusing_count(jnp.array([0.5, 0.95, 1.0]), target) == 2


@pytest.mark.parametrize("target", [0, -0.1, 1.01, 85, math.nan])
def test_confusing_count_requires_a_target_in_range(target):
  with pytest.raises(ValueError, match="target: .* must be a fraction"):
    csm.confusing_count(np.array([0.5, 1.0]), target)


@pytest.mark.parametrize("curve", [[50.0, 100.0], [0.5, math.nan], [-0.1, 1.0]])
def test_confusing_count_requires_accuracies_in_range(curve):
  with pytest.raises(ValueError, match="topn_accuracy: .* must be fractions"):
    csm.confusing_count(np.array(curve), 0.85)


@pytest.mark.parametrize(("curve", "best"), [([0.2, 0.6], "0.6"), ([], "empty")])
def test_confusing_count_reports_the_maximum_if_the_target_is_not_reached(curve, best):
  with pytest.raises(ValueError, match=f"never reaches the target 0.85 .*{best}"):
    csm.confusing_count(np.array(curve), 0.85)


# Three classes: pairs (0,1), (0,2), (1,2). Each pair adds 2/3 to the mean.
@pytest.mark.parametrize(
  ("average", "alpha"),
  [
    (0, 0.95),
    (0.3, 0.95),
    (0.34, 0.75),
    (0.6, 0.75),
    (1, 0.75),
    (1.1, 0.5),
    (1.6, 0.5),
    (1.7, 0.2),
    (2, 0.2),
    (9, 0.2),
  ],
)
def test_threshold_by_hand(average, alpha):
  # At 1, thresholds with means 2/3 and 4/3 are equally close: the smaller set is chosen.
  similarity = _symmetric(3, [0.9, 0.4, 0.6])
  assert csm.threshold(similarity, average) == pytest.approx(alpha)


def test_threshold_is_optimal_by_exhaustive_search():
  rng = np.random.default_rng(7)
  for size in (2, 3, 6, 9):
    # Few values, hence many ties.
    similarity = _symmetric(size, rng.integers(0, 6, size * (size - 1) // 2) / 5)
    means = {_off_diagonal_mean(similarity, a) for a in [-0.1, *np.unique(similarity)]}
    for average in np.arange(0, size + 1, 0.5):
      mean = _off_diagonal_mean(similarity, csm.threshold(similarity, float(average)))
      assert mean == min(means, key=lambda m: (round(abs(m - average), 9), m))


def test_threshold_keeps_ties_together():
  # Four classes, all pairs but one equal: the mean can only be 0.5 or 3.
  similarity = _symmetric(4, [0.9, 0.7, 0.7, 0.7, 0.7, 0.7])
  assert csm.binarize(similarity, csm.threshold(similarity, 1)).sum() - 4 == 2
  assert csm.binarize(similarity, csm.threshold(similarity, 1.75)).sum() - 4 == 2
  assert csm.binarize(similarity, csm.threshold(similarity, 1.8)).sum() - 4 == 12


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_threshold_of_equal_similarities_selects_none_or_all(value):
  similarity = _symmetric(3, [value] * 3)
  for average, total in [(0, 0), (1, 0), (2, 6), (3, 6)]:
    alpha = csm.threshold(similarity, average)
    assert csm.binarize(similarity, alpha).sum() - 3 == total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("odd", [False, True])
def test_threshold_separates_adjacent_floats(dtype, odd):
  # The midpoint of adjacent floats rounds to the even one: either the lower or the higher one.
  low = np.nextafter(dtype(0.5), dtype(1)) if odd else dtype(0.5)
  high = np.nextafter(low, dtype(1))
  similarity = _symmetric(3, [low, high, low]).astype(dtype)
  alpha = csm.threshold(similarity, 0.6)
  assert float(low) <= alpha < float(high)
  np.testing.assert_array_equal(csm.binarize(similarity, alpha), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_single_class():
  similarity = csm.similarity_matrix(np.ones((1, 3)))
  assert csm.threshold(similarity, 0) == csm.threshold(similarity, 3) == 0.5
  np.testing.assert_array_equal(csm.binarize(similarity, 0.5), [[1]])
  np.testing.assert_array_equal(csm.mean_similarity(similarity), [0])


@pytest.mark.parametrize("average", [-1, math.nan])
def test_threshold_requires_a_count(average):
  with pytest.raises(ValueError, match="average_confusing: .* must be >= 0"):
    csm.threshold(np.eye(2), average)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_binarize_by_hand(convert):
  similarity = convert(_symmetric(3, [0.75, 0.25, 0.5]))
  # Strictly above alpha; the diagonal stays 1 above every similarity.
  np.testing.assert_array_equal(csm.binarize(similarity, 0.5), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
  np.testing.assert_array_equal(csm.binarize(similarity, 1), np.eye(3))
  np.testing.assert_array_equal(csm.binarize(similarity, -1), np.ones((3, 3)))
  assert np.asarray(similarity)[0, 1] == 0.75  # the argument is not modified


def test_pairs_the_classes_that_share_channels():
  # Classes 0 and 2, and 1 and 3, have nearly the same zero channels.
  sparsity = np.array([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9], [0.8, 0.1, 0.2], [0.2, 0.1, 0.8]])
  for distance in ("cosine", "euclidean"):
    similarity = csm.similarity_matrix(sparsity, distance)
    average = csm.confusing_count(np.array([0.9, 1, 1, 1]), 0.85)
    matrix = csm.binarize(similarity, csm.threshold(similarity, average))
    np.testing.assert_array_equal(matrix, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]])


# Eq. 7


def test_mean_similarity_by_hand():
  # Off-diagonal sums 1.3, 1.5, 1.0; the diagonal is ignored.
  similarity = _symmetric(3, [0.9, 0.4, 0.6])
  np.testing.assert_allclose(csm.mean_similarity(similarity), [0.6, 1, 0])


@pytest.mark.parametrize("size", [2, 7, 101])
def test_mean_similarity_of_equal_classes_is_zero(size):
  # All classes have the same similarities in different orders: sums differ by rounding alone.
  half = np.random.default_rng(8).random(size // 2)
  row = np.concatenate([[1], half, half[::-1]])[:size]
  similarity = np.stack([np.roll(row, k) for k in range(size)])
  np.testing.assert_array_equal(similarity, similarity.T)
  np.testing.assert_array_equal(csm.mean_similarity(similarity), np.zeros(size))


def test_host_functions_compute_in_float64():
  similarity = csm.similarity_matrix(jnp.eye(3, dtype=jnp.float32))
  assert similarity.dtype == csm.mean_similarity(similarity).dtype == np.float64


def test_most_similar_by_hand():
  similarity = np.array(
    [[1.0, 0.5, 0.9, 0.2], [0.5, 1.0, 0.7, 0.9], [0.9, 0.7, 1.0, 0.1], [0.2, 0.9, 0.1, 1.0]]
  )
  first = [(0, 2, 0.9), (1, 3, 0.9), (1, 2, 0.7)]  # ties: lower classes first
  assert csm.find_most_similar(similarity, 3) == first
  everything = [*first, (0, 1, 0.5), (0, 3, 0.2), (2, 3, 0.1)]
  assert csm.find_most_similar(jnp.asarray(similarity), 9) == [
    (i, j, pytest.approx(value)) for i, j, value in everything
  ]
  assert csm.find_most_similar(np.ones((1, 1)), 5) == []
