"""images.edit of the official SDK: with one file, with a list, and with a mask that the backend does not take.

    python3 openai_edit.py BASE_URL KEY [MODEL]
"""

import io
import json
import sys
import urllib.request

from openai import BadRequestError, OpenAI

import image_files


def edit(client, model, image, **more):
    answer = client.images.edit(model=model, prompt="the same at night", image=image, size="1024x1024", **more)
    with urllib.request.urlopen(answer.data[0].url) as link:
        image = image_files.describe(link.read())
    return {"id": answer.id, "url": answer.data[0].url, "image": image}


def refusal_of_mask(client, model, image):
    try:
        answer = client.images.edit(model=model, prompt="only the sky", image=image, mask=("mask.png", image_files.make()))
    except BadRequestError as error:
        return {"status": error.status_code, "type": error.type, "param": error.param, "message": error.body["message"]}
    raise AssertionError(f"a mask was taken by a backend that takes none: {answer}")


def main(base_url, key, model="gpt-image-2"):
    client = OpenAI(base_url=f"{base_url}/v1", api_key=key)
    first = ("first.png", image_files.make(colour=(220, 60, 60)), "image/png")
    second = ("second.png", image_files.make(64, 64, (60, 60, 220)), "image/png")
    facts = {
        "one": edit(client, model, first),
        "list": edit(client, model, [first, second]),
        # The SDK names it `upload` and declares no image's type: its bytes alone say what it is.
        "nameless": edit(client, model, io.BytesIO(image_files.make())),
        "mask": refusal_of_mask(client, model, first),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
