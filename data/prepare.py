"""Entry point of `data.preparation.prepare`, which prepares videos or images for the pipeline.

python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine
"""

from data.preparation.prepare import main

if __name__ == "__main__":
  main()
