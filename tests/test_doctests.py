"""Checks that every public function of the pure modules has an example, which pytest runs."""

import doctest
import inspect

import pytest

from u2s_jax import csm, regularizer
from u2s_jax.evaluation import metrics
from u2s_jax.models import mask
from u2s_jax.video import sampling


@pytest.mark.parametrize(
  "module", [csm, metrics, regularizer, mask, sampling], ids=lambda module: module.__name__
)
def test_public_functions_have_examples(module):
  finder, undocumented = doctest.DocTestFinder(recurse=False), []
  for name, function in vars(module).items():
    if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)):
      continue
    if function.__module__ != module.__name__:
      continue
    examples = [test.examples for test in finder.find(inspect.unwrap(function), name)]
    if not any(examples):
      undocumented.append(name)
  assert not undocumented
