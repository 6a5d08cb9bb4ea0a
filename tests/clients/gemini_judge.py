"""Judges a fake of Gemini's API with the official SDK: what it answers must be what the SDK reads.

    python3 gemini_judge.py BASE_URL KEY --wrong-key KEY --refused-prompt TEXT

Tests rely on the fake, so it must take what the SDK sends and fail as the real thing does: a
refusal is an answer without candidates, and an error has a code and a status.
"""

import argparse
import json

from google import genai
from google.genai import errors, types

import image_files


def generate(client, contents, **more):
    config = types.GenerateContentConfig(
        response_modalities=["IMAGE"],
        image_config=types.ImageConfig(aspect_ratio="16:9", **more),
    )
    return client.models.generate_content(model="gemini-3-pro-image", contents=contents, config=config)


def judge(answer):
    [candidate] = answer.candidates
    assert candidate.finish_reason == types.FinishReason.STOP, candidate.finish_reason
    images = [part.inline_data for part in candidate.content.parts if part.inline_data and not part.thought]
    assert len(images) == 1, f"one image expected: {candidate.content.parts}"
    assert answer.usage_metadata.total_token_count > 0, answer.usage_metadata
    return image_files.describe(images[0].data)


def judge_error(status, action):
    try:
        answer = action()
    except errors.ClientError as error:
        assert error.status == status, f"{status} expected: {error}"
        return {"code": error.code, "status": error.status}
    raise AssertionError(f"{status} expected, got {answer}")


def client_of(base_url, key):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=base_url, api_version="v1beta"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("key")
    parser.add_argument("--wrong-key", required=True)
    parser.add_argument("--refused-prompt", required=True)
    arguments = parser.parse_args()

    client = client_of(arguments.base_url, arguments.key)
    reference = types.Part.from_bytes(data=image_files.make(), mime_type="image/png")
    facts = {
        "text": judge(generate(client, "a heron")),
        "size": judge(generate(client, "a heron", image_size="2K")),
        "reference": judge(generate(client, ["the same at night", reference])),
    }
    assert facts["size"]["width"] == 2 * facts["text"]["width"], facts

    refused = generate(client, arguments.refused_prompt)
    assert not refused.candidates, refused
    facts["refused"] = refused.prompt_feedback.block_reason.value

    stranger = client_of(arguments.base_url, arguments.wrong_key)
    facts["wrong_key"] = judge_error("INVALID_ARGUMENT", lambda: generate(stranger, "a heron"))
    facts["unknown_size"] = judge_error("INVALID_ARGUMENT", lambda: generate(client, "a heron", image_size="9K"))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
