"""Every public function of the pure modules has an example, which pytest runs."""

import doctest
import inspect

import pytest

from data import sampling
from u2s_jax import csm, metrics, regularizer
from u2s_jax.models import mask


@pytest.mark.parametrize(
  "module", [csm, metrics, regularizer, mask, sampling], ids=lambda module: module.__name__
)
def test_every_public_function_has_an_example(module):
  finder, without = doctest.DocTestFinder(recurse=False), []
  for name, function in vars(module).items():
    if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)):
      continue
    if function.__module__ != module.__name__:
      continue
    examples = [test.examples for test in finder.find(inspect.unwrap(function), name)]
    if not any(examples):
      without.append(name)
  assert not without
