"""Shares of topics of new documents in one pass: amortized LDA on 20 Newsgroups.

    python benchmarks/topics.py ../shared/data/text_20ng/20ng_bow.npz [--steps 3000]

Beside `benchmarks/lda.py`, whose measure is repeated here: perplexity of the second halves of test documents given
shares from the first, by the encoder and by scikit-learn for the same topics.
Needs `pip install scikit-learn`.
"""

import argparse

import jax
import numpy as np
from lda import PRIOR, TOPICS, completion, perplexity, read
from scipy.special import softmax

import amortax as am
from amortax.models import lda

DRAWS = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    train, first, second = (read(arguments.data, s) for s in ("tr", "ts_h1", "ts_h2"))
    kept = (np.asarray(first.sum(1)).ravel() > 0) & (np.asarray(second.sum(1)).ravel() > 0)
    first, second, names = first[kept], second[kept], np.load(arguments.data)["vocab"]
    data = am.units(lda.documents(train), name="document")
    model = lda.amortized(TOPICS, train.sum(axis=0), doc_topic_prior=PRIOR)
    plan = am.amortize(model, data, plate="document", encoder=am.dense(width=100))
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=arguments.steps, batch_size=256)
    record, topics = posterior.record, np.asarray(lda.learned_topics(posterior), float)
    print(f"{record.num_steps} steps ({record.stopped}), {record.seconds:.1f} s", flush=True)
    draws = posterior.sample(lda.documents(first, empty=True), num_samples=DRAWS, key=jax.random.key(1))
    shares = np.mean(softmax(draws["log_shares"].values, axis=-1), axis=0)
    print(f"shares by the encoder {perplexity(shares @ topics, second):.1f}")
    print(f"scikit-learn's for the same topics {completion(topics, first, second):.1f}")
    bounds = [np.round(numbers[::5], 1) for numbers in (record.elbo_per_unit, record.validation_elbo_per_unit)]
    print(f"bounds, every 500 steps: {bounds[0]}; held out {bounds[1]}")
    for row in topics:
        print("   ", *names[np.argsort(-row)[:10]])


if __name__ == "__main__":
    main()
