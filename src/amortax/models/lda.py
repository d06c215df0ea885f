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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float, Num

from .._errors import DataError

ASCENTS = 30  # of q(θ_d) given the topics


def collapsed(num_topics: int, *, doc_topic_prior: float = 0.1, topic_word_prior: float = 0.1) -> Callable:
    """The model of `counts` (documents, words), for data as `documents` gives them."""

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


def documents(counts: Any) -> dict[str, np.ndarray]:
    """Data of `collapsed` from word counts (documents, words), an array or a SciPy sparse matrix.

    **Raises** `DataError`, naming the first, where a number is no count, or a document has no words: there is nothing
    to learn its topics from.
    """
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts)
    wrong = ~(counts >= 0) | (counts != np.floor(counts))
    if len(odd := np.argwhere(wrong)):
        document, word = odd[0]
        raise DataError(
            f"data['counts'], unit '{document}', word {word}: {counts[document, word]} is no count ({len(odd)} such); "
            "give how often each word occurs, whole numbers from 0, not shares or weights such as tf-idf"
        )
    if len(empty := np.flatnonzero(counts.sum(axis=1) == 0)):
        raise DataError(
            f"data['counts'], unit '{empty[0]}': the document has no words ({len(empty)} such of {len(counts)}); leave "
            "empty documents out: their shares of topics are those of the prior"
        )
    return {"counts": counts.astype(np.int32)}
