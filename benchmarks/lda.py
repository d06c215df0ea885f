"""Topics of 20 Newsgroups: natural gradients beside scikit-learn, by one scorer.

    python benchmarks/lda.py ../shared/data/text_20ng/20ng_bow.npz [--documents 11214] [--epochs 4]

The same model (20 topics, both priors 0.1), batch size and Robbins-Monro steps for scikit-learn's `partial_fit` and
`am.natural`; needs `pip install scikit-learn`. Scored by scikit-learn for all, given mean topics only: shares of a test
document are inferred from one half of its words (`ts_h1`), and the perplexity is that of the other half (`ts_h2`).
"""

import argparse
import time

import jax
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.decomposition import LatentDirichletAllocation

import amortax as am
from amortax.models import lda

TOPICS, PRIOR, BATCH, DELAY, EXPONENT = 20, 0.1, 256, 10.0, 0.7


def read(path, split):
    z = np.load(path)
    counts, indices, indptr = z[f"{split}_counts"].astype(int), z[f"{split}_indices"].astype(int), z[f"{split}_indptr"]
    return csr_matrix((counts, indices, indptr), shape=(len(indptr) - 1, len(z["vocab"])))


def empty_model(seed=0):
    return LatentDirichletAllocation(
        TOPICS,
        doc_topic_prior=PRIOR,
        topic_word_prior=PRIOR,
        learning_method="online",
        learning_offset=DELAY,
        learning_decay=EXPONENT,
        batch_size=BATCH,
        total_samples=11214,
        random_state=seed,
    )


def completion(topics, first, second):
    """Perplexity of the second halves given shares from the first, which are scikit-learn's for these topics."""
    scorer = empty_model()
    scorer.partial_fit(first[:BATCH])
    scorer.components_ = topics * 1e6  # as good as known
    scorer.exp_dirichlet_component_ = topics
    shares = scorer.transform(first)
    return perplexity(shares @ topics, second)


def perplexity(words, counts):
    rows, columns = counts.nonzero()
    log_prob = np.log(np.maximum(words[rows, columns], 1e-30))
    return float(np.exp(-(counts[rows, columns].A1 * log_prob).sum() / counts.sum()))


def sklearn_topics(train, epochs, seed):
    model, start = empty_model(seed), time.perf_counter()
    model.total_samples = train.shape[0]
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(train.shape[0])
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            model.partial_fit(train[order[begin : begin + BATCH]])
    seconds = time.perf_counter() - start
    return model.components_ / model.components_.sum(axis=1, keepdims=True), seconds


def natural_topics(train, steps, seed):
    data = lda.documents(train)
    model = lda.collapsed(TOPICS, doc_topic_prior=PRIOR, topic_word_prior=PRIOR)
    plan = am.amortize(model, data, plate="document", shared_family=am.exponential_family())
    start, steady = time.perf_counter(), am.natural(am.robbins_monro(DELAY, EXPONENT))
    posterior = am.fit(plan, data, key=jax.random.key(seed), optimizer=steady, num_steps=steps, batch_size=BATCH)
    seconds = time.perf_counter() - start
    concentration = np.exp(np.asarray(posterior.guide.shared.family.blocks[0].log_concentration, np.float64))
    print(f"  fit {seconds:.1f} s with compiling, training {posterior.record.seconds:.1f} s", flush=True)
    return concentration / concentration.sum(axis=1, keepdims=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--documents", type=int, default=11214)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="sklearn,natural")
    arguments = parser.parse_args()
    train, first, second = (
        read(arguments.data, "tr")[: arguments.documents],
        *(read(arguments.data, s) for s in ("ts_h1", "ts_h2")),
    )
    kept = (np.asarray(first.sum(1)).ravel() > 0) & (np.asarray(second.sum(1)).ravel() > 0)
    first, second = first[kept], second[kept]
    steps = arguments.epochs * (train.shape[0] // BATCH)
    share = np.asarray(train.sum(0)).ravel() + PRIOR
    print(
        f"{train.shape[0]} documents, {steps} steps of {BATCH}; {first.shape[0]} test documents; frequencies alone "
        f"{perplexity(np.tile(share / share.sum(), (first.shape[0], 1)), second):.1f}",
        flush=True,
    )
    for seed in range(arguments.seeds):
        if "sklearn" in arguments.only:
            topics, seconds = sklearn_topics(train, arguments.epochs, seed)
            print(f"scikit-learn: perplexity {completion(topics, first, second):.1f}, {seconds:.1f} s", flush=True)
        if "natural" in arguments.only:
            topics = natural_topics(train, steps, seed)
            print(f"natural gradients: perplexity {completion(topics, first, second):.1f}", flush=True)


if __name__ == "__main__":
    main()
