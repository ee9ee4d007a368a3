/* dev/host/template.h -- how a chat becomes text. A template is the text of one turn, with a place for its role and one
   for its content. An end of text ends what the assistant says, in place of the rest of the template: so a dialogue is
   contexts and responses in turn, a context being the turns of others since the last response and the opening of the
   assistant's next one.

       <|{role}|>\n{content}\n        context <|user|>\nHello\n<|assistant|>\n        response Hi, then end of text */
#pragma once
#include "files.h"

inline constexpr const char *DEFAULT_TEMPLATE = "<|{role}|>\n{content}\n", *ASSISTANT = "assistant";

// The text of one line, as options and template.txt have it: \n, \t, \r and \\ stand for what they do in C.
inline constexpr const char *ESCAPES = "ntr\\", *ESCAPED = "\n\t\r\\";
inline std::string escaped(const std::string& text) {
    std::string out;
    for (char c : text)
        if (const char* at = c ? strchr(ESCAPED, c) : nullptr) out += {'\\', ESCAPES[at - ESCAPED]};
        else out += c;
    return out;
}
inline std::string unescaped(const std::string& where, const std::string& text, int exit_code = 2) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] != '\\') { out += text[i]; continue; }
        const char* at = ++i < text.size() && text[i] ? strchr(ESCAPES, text[i]) : nullptr;
        if (!at)
            throw Error{exit_code, printable(where + " " + json_quote(text) + ": after \\ expected n, t, r or another "
                                             "\\")};
        out += ESCAPED[at - ESCAPES];
    }
    return out;
}

struct ChatTemplate {
    std::string before, between, after;      // the role, and the content

    explicit ChatTemplate(const std::string& text, const std::string& where = "template", int exit_code = 1) {
        const std::string role = "{role}", content = "{content}";
        const size_t r = text.find(role), c = text.find(content);
        if (r == text.npos || c == text.npos || r > c || text.rfind(role) != r || text.rfind(content) != c)
            throw Error{exit_code, printable(where + ": found '" + escaped(text) + "', expected {role} and then "
                                             "{content}, each once, as in '" + escaped(DEFAULT_TEMPLATE) + "'")};
        before = text.substr(0, r), after = text.substr(c + content.size());
        between = text.substr(r + role.size(), c - r - role.size());
    }
    std::string opening(const std::string& role) const { return before + role + between; }
    std::string turn(const std::string& role, const std::string& content) const {
        return opening(role) + content + after;
    }
};

// The template in a file of one line.
inline std::string read_template(const std::string& path) {
    std::string line = read_file(path, 1 << 16);
    while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
    const std::string text = unescaped(path + ":", line, 1);
    if (line.find('\n') != line.npos) die("%s: expected one line, with \\n for each line's end", path.c_str());
    return ChatTemplate(text, path), text;
}
