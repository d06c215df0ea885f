"""Latent Dirichlet allocation (Blei, Ng and Jordan 2003): documents are units, topics are globals.

    β_k ~ Dirichlet(topic_word_prior)          a topic: shares of words
    θ_d ~ Dirichlet(doc_topic_prior)           a document's shares of topics
    counts_d ~ Multinomial(length_d, Σ_k θ_dk β_k)

`collapsed` leaves one latent for each topic: a document enters by the best bound that q(θ_d) q(topic of each word) has
given the topics, found by coordinate ascent (structured stochastic variational inference, Hoffman and Blei 2015). Its
slope by the topics needs none through the ascent, which ends where the bound is flat.

    data = lda.documents(counts)
    plan = am.amortize(lda.collapsed(20), data, plate="document", shared_family=am.exponential_family())
    posterior = am.fit(plan, data, key=key, optimizer=am.natural(am.robbins_monro(10, 0.7)), num_steps=500)

`amortized` keeps the shares, for an encoder to find those of a new document in one pass. θ_d = softmax(h_d) has the
logistic normal prior nearest to the Dirichlet (Laplace's, in the basis of the softmax: MacKay 1998; Srivastava and
Sutton 2017), h_dk ~ Normal(0, sqrt((1 - 1/K) / doc_topic_prior)), and the topics are learned by maximum likelihood. An
empty document has the prior's shares; give some to training where new ones will come.

    data = lda.documents(counts, empty=True)
    plan = am.amortize(lda.amortized(20, counts.sum(axis=0)), data, plate="document", encoder=am.dense(width=100))
    posterior = am.fit(plan, data, key=key, num_steps=3000)
    lda.learned_topics(posterior)                                    # (topics, words)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, ArrayLike, Float, Num

from .._errors import DataError, ModelError
from .._types import whole_number
from ..posterior import Posterior
from .scales import check_positive

ASCENTS = 30  # of q(θ_d) given the topics
APART = 0.1  # e-folds between topics that are learned by maximum likelihood, at the start


def collapsed(num_topics: int, *, doc_topic_prior: float = 0.1, topic_word_prior: float = 0.1) -> Callable:
    """The model of `counts` (documents, words), for data as `documents` gives them.

    **Raises** `ModelError` unless `num_topics` is a whole number from 1 and both priors are positive.
    """
    whole_number("lda.collapsed: num_topics", num_topics, ModelError)
    check_positive("lda.collapsed: doc_topic_prior", doc_topic_prior)
    check_positive("lda.collapsed: topic_word_prior", topic_word_prior)

    def lda(counts: Array) -> None:
        prior = dist.Dirichlet(jnp.full(counts.shape[1], topic_word_prior))
        topics = jnp.asarray(numpyro.sample("topics", prior.expand([num_topics])))
        with numpyro.plate("document", counts.shape[0]):
            numpyro.factor("words", document_bound(counts, topics, doc_topic_prior))

    return lda


def document_bound(
    counts: Num[Array, "*documents words"], topics: Float[Array, "topics words"], prior: float | Float[Array, ""]
) -> Float[Array, "*documents"]:
    """The best bound of log p(words of each document, in order | topics), in nats."""
    counts = counts.astype(topics.dtype)
    shares = document_shares(counts, jax.lax.stop_gradient(topics), prior)
    total, log_shares = jnp.sum(shares, axis=-1), _mean_log(shares)
    size = shares.shape[-1]
    divergence = gammaln(total) - gammaln(size * prior) + jnp.sum((shares - prior) * log_shares, axis=-1)
    divergence += size * gammaln(prior) - jnp.sum(gammaln(shares), axis=-1)
    return jnp.sum(counts * jnp.log(jnp.exp(log_shares) @ topics + 1e-30), axis=-1) - divergence


def document_shares(
    counts: Num[Array, "*documents words"], topics: Float[Array, "topics words"], prior: float | Float[Array, ""]
) -> Float[Array, "*documents topics"]:
    """Concentrations of the best Dirichlet q(θ_d) of each document given the topics; of an empty one, the prior's.

    Of all documents at once, in products of matrices: `vmap` of one document's products takes four times as long.
    """
    counts = counts.astype(topics.dtype)
    start = prior + jnp.sum(counts, axis=-1, keepdims=True) / topics.shape[0]

    def ascend(_: Any, shares: Array) -> Array:
        weight = jnp.exp(_mean_log(shares))
        return prior + weight * ((counts / (weight @ topics + 1e-30)) @ topics.T)

    return jax.lax.fori_loop(0, ASCENTS, ascend, jnp.broadcast_to(start, (*counts.shape[:-1], topics.shape[0])))


def _mean_log(shares: Float[Array, "*documents topics"]) -> Float[Array, "*documents topics"]:
    """E[log θ] of Dirichlets."""
    return digamma(shares) - digamma(jnp.sum(shares, axis=-1, keepdims=True))


def amortized(num_topics: int, word_counts: ArrayLike, *, doc_topic_prior: float = 0.1) -> Callable:
    """The model of `counts` whose shares of topics an encoder finds.

    Args:
        num_topics: K.
        word_counts: (words,) of all documents: every topic starts near their frequencies.
        doc_topic_prior: of the Dirichlet that the logistic normal prior is nearest to.

    """
    frequencies, sd = log_frequencies(word_counts), shares_sd(num_topics, doc_topic_prior)

    def lda(counts: Array) -> None:
        start = (num_topics, len(frequencies))
        topics: Any = numpyro.param("topics", lambda key: frequencies + APART * jax.random.normal(key, start))
        with numpyro.plate("document", counts.shape[0]):
            log_shares: Any = numpyro.sample("log_shares", dist.Normal(0.0, sd).expand([num_topics]).to_event(1))
            words = jax.nn.softmax(log_shares) @ jax.nn.softmax(topics)
            numpyro.sample("counts", dist.Multinomial(jnp.sum(counts, axis=-1), probs=words), obs=counts)

    return lda


def log_frequencies(word_counts: ArrayLike) -> Float[np.ndarray, " words"]:
    """Of words, one more of each than were counted."""
    counts = np.ravel(np.asarray(word_counts, float)) + 1.0
    return np.log(counts / counts.sum()).astype(np.float32)


def shares_sd(num_topics: int, doc_topic_prior: float) -> float:
    """The sd of each log share whose softmax is nearest to a Dirichlet.

    **Raises** `ModelError` unless `num_topics` is a whole number from 1 and the prior positive.
    """
    whole_number("num_topics", num_topics, ModelError)
    check_positive("doc_topic_prior", doc_topic_prior)
    return math.sqrt((1.0 - 1.0 / num_topics) / doc_topic_prior)


def learned_topics(posterior: Posterior) -> Float[np.ndarray, "topics words"]:
    """Shares of words in the topics of `amortized`.

    **Raises** `ModelError` for another posterior, whose topics are none of its learned parameters.
    """
    return np.asarray(jax.nn.softmax(trained_topics("lda", posterior)))


def trained_topics(model: str, posterior: Any) -> Array:
    """The learned parameter `topics`."""
    learned = getattr(getattr(posterior, "joint", None), "params", {})
    if "topics" not in learned:
        raise ModelError(
            f"{model}.learned_topics: expected a posterior of {model}.amortized, got {posterior!r}; the topics of "
            "lda.collapsed are latent: posterior.sample(...).topics"
        )
    return learned["topics"]


def documents(counts: Any, *, empty: bool = False) -> dict[str, np.ndarray]:
    """Data of the models from word counts (documents, words), an array or a SciPy sparse matrix.

    **Raises** `DataError`, naming the first, where a number is no count, or a document has no words, unless these may
    be `empty`: topics can't be learned from it.
    """
    try:
        counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts)
    except ValueError:
        counts = np.empty(0, object)
    if counts.ndim != 2 or counts.dtype.kind not in "biuf":
        raise DataError(
            f"lda.documents: expected counts of two axes, documents and words, got shape {counts.shape} of "
            f"{counts.dtype.name}; one document is counts[None], and words must be counted first (scikit-learn's "
            "CountVectorizer)"
        )
    wrong = ~(counts >= 0) | (counts != np.floor(counts))
    if len(odd := np.argwhere(wrong)):
        document, word = odd[0]
        raise DataError(
            f"data['counts'], unit '{document}', word {word}: {counts[document, word]} is no count ({len(odd)} such); "
            "give how often each word occurs, whole numbers from 0, not shares or weights such as tf-idf"
        )
    if not empty and len(without := np.flatnonzero(counts.sum(axis=1) == 0)):
        raise DataError(
            f"data['counts'], unit '{without[0]}': the document has no words ({len(without)} such of {len(counts)}); "
            "leave empty documents out, or give empty=True: their shares of topics are those of the prior"
        )
    return {"counts": counts.astype(np.int32)}
