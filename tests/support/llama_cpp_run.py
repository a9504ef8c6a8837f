"""What llama.cpp says of the files of ``--format gguf``; runs in an environment of its own (``make llama``), without
beni, torch and transformers.

Reads a JSON file: ``llm`` and ``mmproj`` (the files), ``asked`` (``text``, with ``<__media__>`` in the place of each
image, and ``images``, PNG in base64), ``texts``, and ``talks`` (lists of messages). Asks llama.cpp's own server, inside
this process, and prints for each question the number of positions that its prompt takes, the log-probabilities of the
token behind it (by id) and the greedy ids, for each of ``texts`` its ids, and for each of ``talks`` its prompt.
"""

import json
import sys
import urllib.request

import xllamacpp

NEW = 8


def served(told):
    """The server of both files, in the arithmetic that is nearest to fp32."""
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = told["llm"], told["mmproj"]
    params.n_ctx, params.n_parallel, params.warmup = 2048, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.fit_params, params.verbosity = False, 1
    return xllamacpp.Server(params)


def request(address, path, given=None):
    """What the server answers to a JSON object, or to nothing."""
    data = None if given is None else json.dumps(given).encode()
    sent = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=120) as answer:
        return json.load(answer)


def answered(address, marker, asked, vocabulary):
    """The answer to a question, greedily.

    A token that begins a character and does not end it has no probabilities, so those of the first one are asked with
    another in its place, which does not change them.
    """
    letter = request(address, "/tokenize", {"content": "x", "add_special": False})["tokens"][-1]
    text = asked["text"].replace("<__media__>", marker)
    prompt = {"prompt_string": text, "multimodal_data": asked["images"]}
    how = {"prompt": prompt, "temperature": 0, "cache_prompt": False, "return_tokens": True}
    first = request(
        address, "/completion", how | {"n_predict": 1, "n_probs": vocabulary, "logit_bias": [[letter, 1e6]]}
    )
    told = {one["id"]: one["logprob"] for one in first["completion_probabilities"][0]["top_logprobs"]}
    said = request(address, "/completion", how | {"n_predict": NEW})
    return {"positions": first["tokens_evaluated"], "logprobs": told, "said": said["tokens"]}


def main():
    with open(sys.argv[1]) as file:
        told = json.load(file)
    server = served(told)
    address = server.listening_address
    marker = request(address, "/props").get("media_marker", "<__media__>")
    vocabulary = request(address, "/v1/models")["data"][0]["meta"]["n_vocab"]
    answers = [answered(address, marker, asked, vocabulary) for asked in told["asked"]]
    plain = {"add_special": False, "parse_special": True}
    texts = [request(address, "/tokenize", {"content": text, **plain})["tokens"] for text in told["texts"]]
    prompts = [request(address, "/apply-template", {"messages": talk})["prompt"] for talk in told["talks"]]
    print(json.dumps({"answers": answers, "texts": texts, "prompts": prompts}))


if __name__ == "__main__":
    main()
