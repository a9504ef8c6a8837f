"""What llama.cpp says of the files of ``--format gguf``; runs in an environment of its own (``make llama``), without
beni, torch and transformers.

Reads a JSON file: ``{"llm", "mmproj", "asked": [{"text", "images": [<PNG in base64>]}], "texts": [...]}``, where a text
has ``<__media__>`` in the place of each image. Asks llama.cpp's own server, inside this process, and prints for each
question the number of positions that its prompt takes, the log-probabilities of the token behind it (by id) and the
greedy ids, and for each of ``texts`` its ids.
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
    params.fit_params, params.use_jinja, params.verbosity = False, False, 1
    return xllamacpp.Server(params)


def request(address, path, given=None):
    """What the server answers to a JSON object, or to nothing."""
    data = None if given is None else json.dumps(given).encode()
    sent = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=120) as answer:
        return json.load(answer)


def answered(address, marker, asked, vocabulary):
    """The answer to a question, greedily."""
    text = asked["text"].replace("<__media__>", marker)
    prompt = {"prompt_string": text, "multimodal_data": asked["images"]}
    how = {"prompt": prompt, "temperature": 0, "cache_prompt": False, "return_tokens": True}
    first = request(address, "/completion", how | {"n_predict": 1, "n_probs": vocabulary})
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
    print(json.dumps({"answers": answers, "texts": texts}))


if __name__ == "__main__":
    main()
