"""Sentences on which an export is verified: plain prose of this project's own, with the odd case among it.

Knows nothing about tokens; `verify` cuts and joins these to the lengths it wants.
"""

from __future__ import annotations

__all__ = ["SENTENCES"]

SENTENCES = (
    "The man went to the store.",
    "He bought a gallon of milk and carried it home in both arms.",
    "Rain fell all night on the tin roof of the station, and nobody slept.",
    "In the morning the river had risen to the third step of the mill.",
    "Why should anyone believe a report that names neither a place nor a date?",
    "She folded the letter twice, put it into her coat, and never mentioned it again.",
    "The committee met on 14 March 1931; seven members voted for the bridge, two against.",
    "Café owners in Zürich say that the façade cost more than the kitchen.",
    "A baker rises at three, because bread that is sold at six has to cool for an hour.",
    "“No,” said the captain, “we turn back while there is still coal.”",
    "Water boils at a lower temperature on a mountain than it does by the sea.",
    "The children counted eleven geese, then twelve, then lost count altogether.",
    "His sister's workshop smelled of varnish, sawdust and cold tea.",
    "Interest rates rose again, so the family put off buying the house.",
    "Most of the island's wells are shallow, and in a dry summer they taste of salt.",
    "It was an unremarkable, counterintuitive, thoroughly well-documented discovery.",
    "Two trains leave at the same minute: one for the coast, the other for the capital.",
    "The archive keeps 4,096 glass plates, of which about 3% have cracked.",
    "Old maps call the village 山口, and the signpost still does.",
    "Nobody had told the new teacher that the clock in the hall ran ten minutes fast.",
    "Once the snow had melted, the shepherds moved up to the high pastures.",
    "Can you read the number on the door? It is either 18 or 13.",
    "They planted oaks along the road, knowing that they would not live to sit in the shade.",
    "E-mail me at the usual address (the one ending in .org), or don't; it hardly matters!",
)
