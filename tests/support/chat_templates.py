"""Chat templates that take tools, each spelling calls as a family of models does; over the vocabulary of `tiny_gguf`."""

_MESSAGE = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

# As Qwen's and Hermes': each call between marks of its own, what it gave back in a turn of the user.
HERMES = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.tool_calls %}{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{% set f = c.function %}"
    """{{ '\n<tool_call>\n{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}\n</tool_call>' }}"""
    "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}" + _MESSAGE + "{% endif %}{% endfor %}" + _PROMPT
)

# As Llama 3's: the whole answer is one call, with nothing around it; definitions are indented, results quoted.
LLAMA = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>ipython\n' + (m.content | tojson) + '<|im_end|>\n' }}"
    "{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    """{{ '<|im_start|>assistant\n{"name": "' + f.name + '", "parameters": ' + (f.arguments | tojson) + '}<|im_end|>\n' }}"""
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if loop.first and tools %}{% for t in tools %}{{ (t | tojson(indent=4)) + '\n\n' }}{% endfor %}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}" + _PROMPT
)

# As Mistral's: a control token, then a list of calls with ids of nine characters; definitions before the last question.
CALLS_TOKEN = "[TOOL_CALLS]"
MISTRAL = (
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and m == asked[-1] %}{{ '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    """{{ (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' }}{{ ']' + eos_token if loop.last else ', ' }}{% endfor %}"""
    """{% elif m.role == 'tool' %}{{ '[RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' }}"""
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

# As older DeepSeek's: no content at all beside calls, arguments as a text, every call a block of code.
DEEPSEEK = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>tool\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' and m.content is none %}{{ '<|im_start|>assistant\n' }}{% for c in m.tool_calls %}"
    "{{ '<|call|>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}" + _MESSAGE + "{% endif %}{% endfor %}" + _PROMPT
)

# As newer coders': arguments are no JSON.
XML = HERMES.replace("(f.arguments | tojson)", "(f.arguments | dictsort | join(','))")
