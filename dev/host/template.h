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
        if (text[i] != '\\') {
            out += text[i];
            continue;
        }
        const char* at = ++i < text.size() && text[i] ? strchr(ESCAPES, text[i]) : nullptr;
        if (!at)
            throw Error{exit_code, printable(where + " " + json_quote(text) + ": after \\ expected n, t, r or another "
                                             "\\")};
        out += ESCAPED[at - ESCAPES];
    }
    return out;
}

inline std::string members_of(const Json& json) {
    std::string names;
    for (auto& [name, value] : json.members)
        if (names.size() < 300) names += (names.empty() ? "" : ", ") + json_quote(name.substr(0, 60)) +
                                         (value.kind == Json::STRING ? "" : " (no string)");
    return json.kind != Json::OBJECT ? "found no object" : "it has " + (names.empty() ? "no members" : names);
}

struct Turn {
    std::string role, content;
    bool operator==(const Turn&) const = default;
};
using Turns = std::vector<Turn>;

// The turns in a member of a line: of "role" and "content" or, in "conversations", as ShareGPT names them.
inline Turns read_turns(const Json& line, const std::string& name, const std::string& where) {
    const bool shared = name == "conversations";
    const std::string role = shared ? "from" : "role", content = shared ? "value" : "content";
    if (line[name].kind != Json::ARRAY)
        die("%s: expected a list %s of turns; %s", where.c_str(), json_quote(name).c_str(), members_of(line).c_str());
    Turns all;
    for (const Json& turn : line[name].items) {
        const std::string at = format("%s: turn %zu of \"%s\"", where.c_str(), all.size() + 1, name.c_str());
        const std::string& who = turn[role].string;
        if (turn[role].kind != Json::STRING || turn[content].kind != Json::STRING)
            die("%s: expected strings %s and %s; %s", at.c_str(), json_quote(role).c_str(),
                json_quote(content).c_str(), members_of(turn).c_str());
        all.push_back({shared && who == "human" ? "user" : shared && who == "gpt" ? ASSISTANT : who,
                       turn[content].string});
        if (all.back() == Turn{ASSISTANT, ""})
            die("%s: is empty, expected a response; take such lines out: jq -c 'select(all(.%s[]; .%s != \"\"))'",
                at.c_str(), name.c_str(), content.c_str());
    }
    return all;
}
// Those of a prompt.
inline Turns read_asked(const Json& line, const std::string& name, const std::string& where) {
    const Turns all = read_turns(line, name, where);
    if (all.empty() || all.back().role == ASSISTANT)
        die("%s: %s is a list of %zu turns, expected one to be answered at its end", where.c_str(),
            json_quote(name).c_str(), all.size());
    return all;
}

struct ChatTemplate {
    std::string before, between, after;      // the role, and the content

    explicit ChatTemplate(const std::string& text, const std::string& where = "template", int exit_code = 1) {
        const std::string role = "{role}", content = "{content}";
        const size_t r = text.find(role), c = text.find(content);
        if (r == text.npos || c == text.npos || r > c || text.rfind(role) != r || text.rfind(content) != c)
            throw Error{exit_code, printable(where + ": found '" + escaped(text) + "', expected {role} and then "
                                             "{content}, each once, as in '" + escaped(DEFAULT_TEMPLATE) + "'")};
        before = text.substr(0, r);
        after = text.substr(c + content.size());
        between = text.substr(r + role.size(), c - r - role.size());
    }
    std::string opening(const std::string& role) const { return before + role + between; }
    std::string turn(const std::string& role, const std::string& content) const {
        return opening(role) + content + after;
    }
    // Contexts and responses in turn; open: turns since the last response.
    std::vector<std::string> exchanges(const Turns& turns, size_t& open) const {
        std::vector<std::string> parts;
        std::string context;
        open = 0;
        for (auto& [role, content] : turns) {
            if (role != ASSISTANT) {
                context += turn(role, content);
                open++;
                continue;
            }
            parts.push_back(context + opening(role));
            parts.push_back(content);
            context.clear();
            open = 0;
        }
        return parts;
    }
};

// The template in a file of one line.
inline std::string read_template(const std::string& path) {
    std::string line = read_file(path, 1 << 16);
    while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
    const std::string text = unescaped(path + ":", line, 1);
    if (line.find('\n') != line.npos) die("%s: expected one line, with \\n for each line's end", path.c_str());
    ChatTemplate(text, path);                // which dies of a text that is none
    return text;
}
