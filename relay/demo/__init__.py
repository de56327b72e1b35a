"""A simulated OpenAI-compatible upstream as a script: from one request to the bytes of its answer, their pace and their faults.

Nothing here is a model, and every answer says so: in its text, in `/v1/models` and in `system_fingerprint`. A prompt can ask for trouble
(`words.WISHES`), so that anybody can see what a client gets when an upstream fails. The socket side is `transport.demo`; here time and
identifiers come in as arguments, and a fault is only named: the server makes it happen on the connection.
"""

from relay.demo.script import reply
from relay.demo.words import MODELS, Ending, Reply, Step

__all__ = ["MODELS", "Ending", "Reply", "Step", "reply"]
