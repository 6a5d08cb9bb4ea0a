"""The official SDK's own retries: it gives up waiting after a while, asks again, and must get the one image.

    python3 openai_retry.py BASE_URL KEY [MODEL] [TIMEOUT_S]

The model should take longer than one time-out (2 s) and less than three. Prints what was sent and what came.
"""

import json
import sys
import time
import urllib.request

import openai
from openai import OpenAI

import image_files


def main(base_url, key, model="gpt-image-2", timeout_s="2"):
    attempts = []

    def note(request):
        attempts.append(int(request.headers.get("x-stainless-retry-count", 0)))

    client = OpenAI(
        base_url=f"{base_url}/v1",
        api_key=key,
        timeout=float(timeout_s),
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [note]}),
    )
    start = time.monotonic()
    answer = client.images.generate(model=model, prompt="a heron, slowly")
    waited_s = time.monotonic() - start

    assert len(attempts) > 1, f"the model was too fast to be asked twice: {waited_s:.1f} s"
    assert len(answer.data) == 1, f"one image was asked for: {answer}"
    with urllib.request.urlopen(answer.data[0].url) as link:
        image = image_files.describe(link.read())
    facts = {
        "attempts": attempts,
        "waited_s": round(waited_s, 1),
        "id": answer.id,
        "url": answer.data[0].url,
        "image": image,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
