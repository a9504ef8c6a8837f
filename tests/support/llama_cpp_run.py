"""What llama.cpp says of the files of ``--format gguf``; runs in an environment of its own (``make llama``), without
beni, torch and transformers.

Reads a JSON file: ``{"llm", "mmproj", "asked": [{"text", "images": [{"width", "height", "rgb"}]}], "texts": [...]}``.
Prints for each question the ids of its text, the embeddings of its images, the last logits and the greedy ids, and for
each of ``texts`` its ids.
"""

import ctypes
import json
import sys

import llama_cpp
import llama_cpp.mtmd_cpp as mtmd

NEW = 8


def opened(told):
    llm = llama_cpp.Llama(model_path=told["llm"], n_ctx=2048, n_threads=1, verbose=False)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.print_timings = False, 1, False
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = mtmd.mtmd_init_from_file(told["mmproj"].encode(), llm.model, params)
    assert context is not None
    assert mtmd.mtmd_support_vision(context)
    return llm, context


def bitmap(image):
    rgb = bytes.fromhex(image["rgb"])
    return mtmd.mtmd_bitmap_init(image["width"], image["height"], (ctypes.c_uint8 * len(rgb)).from_buffer_copy(rgb))


def answered(llm, context, asked, width):
    llm.reset()
    words = asked["text"].encode()
    text = mtmd.mtmd_input_text(text=words, text_len=len(words), add_special=True, parse_special=True)
    chunks = mtmd.mtmd_input_chunks_init()
    images = [bitmap(image) for image in asked["images"]]
    pointers = (mtmd.mtmd_bitmap_p_ctypes * len(images))(*images)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), pointers, len(images)) == 0
    ids, embeddings = [], []
    for number in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, number)
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            count = ctypes.c_size_t()
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            own = [tokens[place] for place in range(count.value)]
            ids += own
            llm.eval(own)
            continue
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        ids += [-1] * count
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        found = mtmd.mtmd_get_output_embd(context)
        embeddings.append([[found[row * width + column] for column in range(width)] for row in range(count)])
        past = llama_cpp.llama_pos(0)
        done = mtmd.mtmd_helper_eval_chunk_single(
            context, llm._ctx.ctx, chunk, llama_cpp.llama_pos(llm.n_tokens), llama_cpp.llama_seq_id(0), llm.n_batch,
            False, ctypes.byref(past),
        )  # fmt: skip
        assert done == 0
        llm.n_tokens = past.value
    logits, said = None, []
    for _ in range(NEW):
        now = llama_cpp.llama_get_logits_ith(llm._ctx.ctx, -1)
        values = [now[place] for place in range(llm.n_vocab())]
        logits = logits or values
        best = max(range(len(values)), key=values.__getitem__)
        said.append(best)
        if llama_cpp.llama_vocab_is_eog(llm._model.vocab, best):
            break
        llm.eval([best])
    return {"ids": ids, "embeddings": embeddings, "logits": logits, "said": said}


def main():
    with open(sys.argv[1]) as file:
        told = json.load(file)
    llm, context = opened(told)
    answers = [answered(llm, context, asked, llm.n_embd()) for asked in told["asked"]]
    texts = [llm.tokenize(text.encode(), add_bos=False, special=True) for text in told["texts"]]
    print(json.dumps({"answers": answers, "texts": texts}))


if __name__ == "__main__":
    main()
