"""Topics and shares of new documents in one pass: amortized LDA and ProdLDA on 20 Newsgroups.

    python benchmarks/topics.py ../shared/data/text_20ng/20ng_bow.npz [--steps 3000]

Beside `benchmarks/lda.py`, whose measure is repeated here: perplexity of the second halves of test documents given
shares from the first, by the encoder and, for LDA, by scikit-learn for the same topics. Of each topic's ten first words
there are the coherence, mean NPMI of their pairs in training documents, and the share that no other topic has among its
own ten. Needs `pip install scikit-learn`.
"""

import argparse

import jax
import numpy as np
from lda import PRIOR, TOPICS, completion, perplexity, read
from scipy.special import softmax

import amortax as am
from amortax.models import lda, prodlda

DRAWS, FIRST = 10, 10


def fitted(model, train, steps):
    data = am.units(lda.documents(train), name="document")
    model = model.amortized(TOPICS, train.sum(axis=0), doc_topic_prior=PRIOR)
    plan = am.amortize(model, data, plate="document", encoder=am.dense(width=100))
    return am.fit(plan, data, key=jax.random.key(0), num_steps=steps, batch_size=256)


def coherence(words, counts):
    """Mean over topics of the normalised pointwise mutual information of pairs of their `words`, by documents."""
    present, each = counts > 0, []
    for few in words:
        together = (present[:, few].T.astype(float) @ present[:, few].astype(float)).toarray() / counts.shape[0]
        alone = np.diagonal(together)
        i, j = np.triu_indices(len(few), 1)
        both = np.maximum(together[i, j], 1e-12)
        each.append(np.mean(np.log(both / (alone[i] * alone[j])) / -np.log(both)))
    return float(np.mean(each))


def report(name, posterior, train, topics, words, second, vocabulary):
    record, first_words = posterior.record, np.argsort(-topics, axis=1)[:, :FIRST]
    print(f"{name}: {record.num_steps} steps ({record.stopped}), {record.seconds:.1f} s")
    print(f"  shares by the encoder {perplexity(words, second):.1f}")
    _, times = np.unique(first_words, return_counts=True)
    own = np.sum(times == 1) / first_words.size
    print(f"  coherence {coherence(first_words, train):.3f}, words of one topic only {own:.2f}")
    bounds = [np.round(numbers[::5], 1) for numbers in (record.elbo_per_unit, record.validation_elbo_per_unit)]
    print(f"  bounds, every 500 steps: {bounds[0]}; held out {bounds[1]}")
    for row in first_words:
        print("     ", *vocabulary[row], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    train, first, second = (read(arguments.data, s) for s in ("tr", "ts_h1", "ts_h2"))
    kept = (np.asarray(first.sum(1)).ravel() > 0) & (np.asarray(second.sum(1)).ravel() > 0)
    first, second, vocabulary = first[kept], second[kept], np.load(arguments.data)["vocab"]
    asked, log_frequencies = lda.documents(first, empty=True), lda.log_frequencies(train.sum(axis=0))
    for name, model in (("LDA", lda), ("ProdLDA", prodlda)):
        posterior = fitted(model, train, arguments.steps)
        draws = posterior.sample(asked, num_samples=DRAWS, key=jax.random.key(1))["log_shares"].values
        topics = np.asarray(model.learned_topics(posterior), float)
        if model is lda:
            words = np.mean(softmax(draws, axis=-1), axis=0) @ topics
            print(f"scikit-learn's shares for the topics of LDA {completion(topics, first, second):.1f}")
        else:
            words = sum(softmax(log_frequencies + softmax(h, axis=-1) @ topics, axis=-1) for h in draws) / DRAWS
        report(name, posterior, train, topics, words, second, vocabulary)


if __name__ == "__main__":
    main()
