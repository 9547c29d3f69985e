// Reads JSON: enough for the sidecars that dhead_trt writes. Private to sidecar.cpp.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace dhead::trt::json {

struct Value {
    enum class Kind { kNull, kBool, kNumber, kText, kList, kObject } kind = Kind::kNull;
    bool boolean = false;
    double number = 0;
    std::string text;
    std::vector<Value> list;
    std::map<std::string, Value> object;

    // Member of an object; throws std::runtime_error where it is missing or of another kind.
    const Value& at(const std::string& key, Kind wanted) const {
        const auto it = object.find(key);
        if (it == object.end()) throw std::runtime_error("no " + key);
        if (it->second.kind != wanted) throw std::runtime_error(key + " is of another type");
        return it->second;
    }
};

class Parser {
  public:
    explicit Parser(const std::string& text) : text_(text) {}
    // Throws std::runtime_error with the position.
    Value parse() {
        Value v = value(0);
        space();
        if (at_ != text_.size()) fail("text after the end");
        return v;
    }

  private:
    [[noreturn]] void fail(const char* what) const {
        throw std::runtime_error(std::string(what) + " at byte " + std::to_string(at_));
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void space() {
        while (at_ < text_.size() && (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t')) ++at_;
    }
    bool accept(char c) {
        space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!accept(c)) fail("not JSON");
    }
    bool word(const char* w) {
        const std::string s = w;
        if (text_.compare(at_, s.size(), s) != 0) return false;
        at_ += s.size();
        return true;
    }
    Value value(int depth) {
        if (depth > 64) fail("too deep");
        space();
        Value v;
        if (accept('{')) {
            v.kind = Value::Kind::kObject;
            if (accept('}')) return v;
            do {
                space();
                const std::string key = string();
                expect(':');
                v.object[key] = value(depth + 1);
            } while (accept(','));
            expect('}');
        } else if (accept('[')) {
            v.kind = Value::Kind::kList;
            if (accept(']')) return v;
            do v.list.push_back(value(depth + 1));
            while (accept(','));
            expect(']');
        } else if (peek() == '"') {
            v.kind = Value::Kind::kText;
            v.text = string();
        } else if (word("true") || word("false")) {
            v.kind = Value::Kind::kBool;
            v.boolean = text_[at_ - 2] == 'u';
        } else if (!word("null")) {
            char* end = nullptr;
            v.kind = Value::Kind::kNumber;
            v.number = std::strtod(text_.c_str() + at_, &end);
            const auto used = static_cast<std::size_t>(end - (text_.c_str() + at_));
            if (used == 0) fail("not JSON");
            at_ += used;
        }
        return v;
    }
    std::string string() {
        if (peek() != '"') fail("not JSON");
        ++at_;
        std::string s;
        while (peek() != '"') {
            if (at_ >= text_.size()) fail("unfinished text");
            char c = text_[at_++];
            if (c == '\\') {
                c = peek();
                ++at_;
                if (c == 'u') {
                    code_point(&s);
                    continue;
                }
                c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c == 'b' ? '\b' : c == 'f' ? '\f' : c;
            }
            s += c;
        }
        ++at_;
        return s;
    }
    // \uXXXX, and pairs of them, as UTF-8.
    void code_point(std::string* s) {
        const auto hex = [&] {
            if (at_ + 4 > text_.size()) fail("unfinished escape");
            const auto v = static_cast<unsigned>(std::strtoul(text_.substr(at_, 4).c_str(), nullptr, 16));
            at_ += 4;
            return v;
        };
        unsigned c = hex();
        if (c >= 0xD800 && c < 0xDC00 && word("\\u")) c = 0x10000 + ((c - 0xD800) << 10) + (hex() - 0xDC00);
        if (c < 0x80) {
            *s += static_cast<char>(c);
        } else if (c < 0x800) {
            *s += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
        } else if (c < 0x10000) {
            *s += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
                   static_cast<char>(0x80 | (c & 63))};
        } else {
            *s += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
                   static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
        }
    }

    const std::string& text_;
    std::size_t at_ = 0;
};

}  // namespace dhead::trt::json
