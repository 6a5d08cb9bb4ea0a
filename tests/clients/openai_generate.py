"""images.generate of the official SDK: a link that leads to the image, and the image itself when asked for.

    python3 openai_generate.py BASE_URL KEY [MODEL]
"""

import base64
import json
import sys
import urllib.request

from openai import OpenAI

import image_files


def fetch(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def main(base_url, key, model="gpt-image-2"):
    client = OpenAI(base_url=f"{base_url}/v1", api_key=key)

    by_link = client.images.generate(model=model, prompt="a heron at dawn", size="1536x1024", n=2)
    links = [image.url for image in by_link.data]
    assert all(links), f"an image without a link: {by_link}"

    inline = client.images.generate(model=model, prompt="a heron at dusk", response_format="b64_json", quality="low")
    image = base64.b64decode(inline.data[0].b64_json, validate=True)
    behind_link = fetch(inline.data[0].url)

    facts = {
        "by_link": {
            "id": by_link.id,
            "created": by_link.created,
            "urls": links,
            "inline": [image.b64_json is not None for image in by_link.data],
            "images": [image_files.describe(fetch(link)) for link in links],
        },
        "inline": {
            "id": inline.id,
            "image": image_files.describe(image),
            "same_as_link": image == behind_link,
        },
        "models": sorted(entry.id for entry in client.models.list()),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
