"""Topics of 20 Newsgroups: natural gradients beside scikit-learn, by the same measures.

    python benchmarks/lda.py ../shared/data/text_20ng/20ng_bow.npz [--documents 11214] [--epochs 4]

The same model (20 topics, both priors 0.1), batch size and Robbins-Monro steps for scikit-learn's `partial_fit` and
`am.natural`, the same minibatches and the same start: concentrations after one natural step; scikit-learn's own start
is beside it. Needs `pip install scikit-learn`. Three perplexities of the test documents, each by one function for all:

- completion: the second half of a document's words (`ts_h2`) by shares inferred from the first (`ts_h1`), given mean
  topics, both by scikit-learn;
- mean-field: exp(-bound / words) of whole documents, the bound that scikit-learn trains by, with independent topics,
  shares and topics of words, without the divergence of the topics, which is that of the training documents;
- structured: the same where shares and words' topics follow the topics, the bound that `lda.collapsed` trains by.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import digamma
from sklearn.decomposition import LatentDirichletAllocation

import amortax as am
from amortax.intake import to_batch
from amortax.models import lda
from amortax.train.minibatches import BLOCK, sources

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
        learning_offset=DELAY - 1.0,  # it counts steps from 1
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


def minibatches(data, seed, steps):
    """Documents of every step of `am.fit` with this key."""
    _, train_key = jax.random.split(jax.random.key(seed))
    seed_key, _ = jax.random.split(train_key)
    generator = np.random.default_rng(np.asarray(jax.random.bits(seed_key, (4,))))
    blocks = sources(to_batch(data), BATCH, True, generator)
    return np.concatenate([np.asarray(next(blocks)) for _ in range(-(-steps // BLOCK))])[:steps]


def by_sklearn(train, documents, seed, start=None):
    """(concentrations, seconds) after these minibatches; `start` are concentrations after the first of them."""
    model = empty_model(seed)
    model.total_samples = train.shape[0]
    if start is not None:
        model.partial_fit(train[:1])  # makes the arrays that are set here
        model.components_, model.n_batch_iter_, documents = start.copy(), 2, documents[1:]
        model.exp_dirichlet_component_ = mean_topics_of_words(start)
    began = time.perf_counter()
    for rows in documents:
        model.partial_fit(train[rows])
    return model.components_, time.perf_counter() - began


def by_natural(plan, data, steps, seed):
    """(concentrations, seconds of training, seconds of the whole call)."""
    steady, began = am.natural(am.robbins_monro(DELAY, EXPONENT)), time.perf_counter()
    posterior = am.fit(plan, data, key=jax.random.key(seed), optimizer=steady, num_steps=steps, batch_size=BATCH)
    concentration = np.exp(np.asarray(posterior.guide.shared.family.blocks[0].log_concentration, np.float64))
    return concentration, posterior.record.seconds, time.perf_counter() - began


def mean_topics_of_words(concentration):
    """exp(E[log topics]), which is what a mean-field bound sees of them."""
    return np.exp(digamma(concentration) - digamma(concentration.sum(axis=1, keepdims=True)))


def drawn_topics(concentration, rng):
    """One draw of them, none so small that float32 has zero for it."""
    drawn = np.maximum(rng.gamma(concentration), 1e-30)
    return drawn / drawn.sum(axis=1, keepdims=True)


bound = jax.jit(lda.document_bound)


def bound_perplexity(topics, counts):
    """exp(-bound / words) of all documents of `counts`."""
    padded, topics = counts.shape[0] + -counts.shape[0] % 512, jnp.asarray(topics, jnp.float32)
    counts, total = csr_matrix((counts.data, counts.indices, counts.indptr), counts.shape), 0.0
    counts.resize(padded, counts.shape[1])  # an empty document has a bound of zero
    for begin in range(0, padded, 512):
        rows = jnp.asarray(counts[begin : begin + 512].toarray())
        total += float(jnp.sum(bound(rows, topics, PRIOR)))
    return float(np.exp(-total / counts.sum()))


def report(name, concentration, first, second, seconds):
    rng, both = np.random.default_rng(0), first + second
    mean = concentration / concentration.sum(axis=1, keepdims=True)
    structured = np.exp(np.mean([np.log(bound_perplexity(drawn_topics(concentration, rng), both)) for _ in range(2)]))
    mean_field = bound_perplexity(mean_topics_of_words(concentration), both)
    print(
        f"{name}: completion {completion(mean, first, second):.1f}, mean-field {mean_field:.1f}, structured "
        f"{structured:.1f}; {seconds}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--documents", type=int, default=11214)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
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
    data = am.units(lda.documents(train), name="document")
    model = lda.collapsed(TOPICS, doc_topic_prior=PRIOR, topic_word_prior=PRIOR)
    plan = am.amortize(model, data, plate="document", shared_family=am.exponential_family())
    for seed in range(arguments.seeds):
        start, _, first_fit = by_natural(plan, data, 1, seed)
        found, seconds, fit = by_natural(plan, data, steps, seed)
        said = f"training {seconds:.1f} s, fit {fit:.1f} s, a first one of one step {first_fit:.1f} s"
        report(f"seed {seed}, natural gradients", found, first, second, said)
        for name, at in (("the same start", start), ("its own start", None)):
            found, seconds = by_sklearn(train, minibatches(data, seed, steps), seed, at)
            report(f"seed {seed}, scikit-learn, {name}", found, first, second, f"{seconds:.1f} s")


if __name__ == "__main__":
    main()
