"""Something-Something V2, in the layout of the official download.

  <source>/20bn-something-something-v2/<id>.webm
  <source>/labels/{labels,train,validation,test}.json and labels/test-answers.csv
  or, with older names, <source>/something-something-v2-{labels,train,validation,test}.json

Other videos in this layout work as well.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import SPLITS, Clip, Listing, check_listing

VIDEO_FOLDER = "20bn-something-something-v2"


def list_clips(source: pathlib.Path) -> Listing:
  """Lists the clips of the label files; does not check that the videos exist.

  The split `test` is optional; the label of its clips is -1 if they have no answer.

  Raises:
    FileNotFoundError: if `source`, a label file or the video folder is missing; one line.
    UserError: if a label file is not valid; one line that names it.
  """
  files = _find_label_files(source)
  names = _read_class_names(files["labels"])
  result = Listing(
    names=names,
    splits=_read_splits(source, files, names),
    official={"train": 168_913, "validation": 24_777, "test": 27_157},
  )
  check_listing(result, str(source))
  return result


def _find_label_files(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the label files; `test` and `answers` only if they exist."""
  if not source.is_dir():
    raise FileNotFoundError(f"{source}: not a folder; download the data set into it")
  if not any(source.iterdir()):
    raise FileNotFoundError(f"{source}: is empty; download the data set into it")
  names = ("labels", *SPLITS)
  files = {name: source / f"something-something-v2-{name}.json" for name in names}
  if (source / "labels").is_dir() or not any(path.is_file() for path in files.values()):
    files = {name: source / "labels" / f"{name}.json" for name in names}
  for name in ("labels", "train", "validation"):
    if not files[name].is_file():
      raise FileNotFoundError(
        f"{files[name]}: the label file is missing; {source} requires labels/{name}.json "
        f"or something-something-v2-{name}.json"
      )
  files["answers"] = files["labels"].with_name("test-answers.csv")
  return {name: path for name, path in files.items() if path.is_file()}


def _read_json(path: pathlib.Path, kind: type) -> Any:
  """Reads a JSON file whose top-level value is a `kind`."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not a valid JSON file ({error}); download it again") from error
  if not isinstance(value, kind):
    raise UserError(
      f"{path}: must be a JSON {kind.__name__}, not a {type(value).__name__}; download it again"
    )
  return value


def _read_class_names(path: pathlib.Path) -> list[str]:
  """Reads labels.json, which maps a template without brackets to its index as a string."""
  indices = _read_json(path, dict)
  by_index = {str(index): name for name, index in indices.items()}
  names = [by_index.get(str(index)) for index in range(len(indices))]
  if not names or None in names:
    missing = names.index(None) if names else 0
    raise UserError(f"{path}: no class has the index {missing}; indices must be 0, 1, 2, ...")
  return names


def _read_splits(
  source: pathlib.Path, files: dict[str, pathlib.Path], names: Sequence[str]
) -> dict[str, list[Clip]]:
  """Returns the clips of every split."""
  folder = source / VIDEO_FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: the video folder is missing")

  index = {name: i for i, name in enumerate(names)}

  def find_label(template: Any, path: pathlib.Path, clip_id: str) -> int:
    if not isinstance(template, str):
      raise UserError(f"{path}: the template of entry {clip_id} must be a string, not {template!r}")
    name = template.replace("[", "").replace("]", "")
    if name not in index:
      raise UserError(
        f"{path}: the class {name!r} of entry {clip_id} is not in {files['labels']}; "
        "use two files of the same data set"
      )
    return index[name]

  answers = {}
  if "answers" in files:
    # A byte that is not UTF-8 makes the class unknown, and the error then names it.
    for line in files["answers"].read_text(encoding="utf-8", errors="replace").splitlines():
      if line.strip():
        clip_id, _, name = line.partition(";")
        answers[clip_id.strip()] = find_label(name.strip(), files["answers"], clip_id.strip())

  splits = {}
  for split in SPLITS:
    if split not in files:
      continue
    path, clips = files[split], {}
    for position, entry in enumerate(_read_json(path, list)):
      if not isinstance(entry, dict) or "id" not in entry:
        raise UserError(f'{path}: entry {position} has no "id"')
      clip_id = str(entry["id"])
      if clip_id in clips:
        raise UserError(f"{path}: the id {clip_id} occurs twice; delete one of the entries")
      if "template" in entry:
        label = find_label(entry["template"], path, clip_id)
      elif split == "test":
        label = answers.get(clip_id, -1)
      else:
        raise UserError(f'{path}: entry {clip_id} has no "template"')
      clips[clip_id] = Clip(clip_id, label, str(folder / f"{clip_id}.webm"))
    if clips:
      splits[split] = list(clips.values())
    elif split != "test":
      raise UserError(f"{path}: the file has no entries; download it again")
  return splits
